"""WebDataset tars of images of any size and kind, as they are on model hubs: read in place, nothing is unpacked."""

import sys
from collections import Counter
from typing import IO, cast

from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards.foreign_shards import tars_of
from data_pipeline.make_shards.images import open_image
from data_pipeline.make_shards.sources.base import Item, Listing, printable
from data_pipeline.make_shards.sources.class_names import numbered
from data_pipeline.make_shards.sources.ranges import RangedFile, walked
from data_pipeline.make_shards.tar_scan import USUAL_FIELDS, Fields, Scan, TarSample
from data_pipeline.storage.folder import Folder


class WebDatasetSource:
    """All `*.tar` of a folder. Without `labelled` the samples have no class, whatever the tars say."""

    def __init__(
        self,
        folder: Folder,
        names: dict[str, str] | None = None,
        *,
        fields: Fields = USUAL_FIELDS,
        labelled: bool = True,
    ) -> None:
        self.folder, self.names, self.fields, self.labelled = folder, names, fields, labelled

    def listing(self) -> Listing:
        """The samples in the order of the tars' names and of the tars. Raises DataError."""
        items: list[Item] = []
        unused: Counter[str] = Counter()
        for found, others in walked(self.folder, self._scan, ((tar,) for tar in tars_of(self.folder))):
            items += found
            unused += others
        if unused:
            said = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unused.items()))
            print(f"not used: {said} members", file=sys.stderr)
        if not self.labelled:
            return Listing((), items, unused.total())
        highest = max((item.label for item in items if item.label is not None), default=-1)
        return Listing(numbered(highest, self.names, str(self.folder)), items, unused.total())

    def _scan(self, tar: str) -> tuple[list[Item], Counter[str]]:
        """The samples of one tar, and the members that are no part of one, by their suffixes."""
        scan = Scan(cast(IO[bytes], RangedFile(self.folder, tar)), f"INPUT: {self.folder}/{tar}", self.fields)
        return [self._item(scan, tar, sample) for sample in scan], scan.unused

    def _item(self, scan: Scan, tar: str, sample: TarSample) -> Item:
        label = sample.label if self.labelled else None
        if self.labelled and (label is None or label < 0):
            what = "has no .cls file and no class number in a .json file" if label is None else f"has the label {label}"
            raise DataError(
                f"{scan.name}: the sample {sample.key} {what}; correct it, name the member that has the label with "
                "--label-field, or give --unlabelled"
            )
        return Item(printable(f"{tar}/{sample.key}"), label, (tar, sample.offset, sample.size))

    def image(self, item: Item) -> Image.Image:
        """Decode one item. Raises DataError where the tar has changed, else whatever the decoder raises."""
        tar, offset, size = item.where
        data = self.folder.read_range(str(tar), int(offset), int(size))
        if len(data) != int(size):
            raise DataError(f"INPUT: {self.folder}/{tar} has become shorter than {item.name} needs; fetch it again")
        return open_image(data)
