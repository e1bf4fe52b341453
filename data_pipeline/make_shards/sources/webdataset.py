"""WebDataset tars of images of any size and kind, as they are on model hubs: read in place, nothing is unpacked."""

import sys
from collections import Counter
from typing import IO, cast

from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards.foreign_shards import tars_of
from data_pipeline.make_shards.images import open_image
from data_pipeline.make_shards.sources.base import Item, Listing, printable
from data_pipeline.make_shards.sources.class_names import named
from data_pipeline.make_shards.sources.ranges import RangedFile
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
        for tar in tars_of(self.folder):
            scan = Scan(cast(IO[bytes], RangedFile(self.folder, tar)), f"INPUT: {self.folder}/{tar}", self.fields)
            items += [self._item(scan, tar, sample) for sample in scan]
            unused += scan.unused
        if unused:
            said = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unused.items()))
            print(f"not used: {said} members", file=sys.stderr)
        if not self.labelled:
            return Listing((), items, unused.total())
        highest = max((item.label for item in items if item.label is not None), default=-1)
        ids = list(self.names) if self.names is not None else [str(label) for label in range(highest + 1)]
        if highest >= len(ids):
            raise DataError(
                f"INPUT: {self.folder} holds the label {highest}, outside 0..{len(ids) - 1}; correct --class-names or the "
                "labels"
            )
        return Listing(named(ids, self.names), items, unused.total())

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
