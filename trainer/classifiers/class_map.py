"""Are the data's classes the classifier's, and which logit is whose?"""

import torch
from torch import Tensor

from data_pipeline.manifest.format import Manifest
from trainer.classifiers.build import is_wordnet_id
from trainer.classifiers.classifier import Classifier
from trainer.foundation.errors import SettingError

_OURS = "train one on these shards with `python -m trainer.train_classifier`"


def check_class_map(classifier: Classifier, manifest: Manifest, setting: str = "classifier") -> Tensor | None:
    """The logit of each of the data's classes, int64 [classes]; None where class n is logit n and there are no others.

    A classifier with WordNet ids is matched by id, and may have more classes than the data; another one must have the
    same number of classes, and is matched by name. Raises `SettingError` where they do not fit.
    """
    what, classes = classifier.description, manifest.classes
    if manifest.channels not in (1, classifier.image_channels):
        raise SettingError(
            f"{setting}: {what} takes images with {classifier.image_channels} channels, the data's have "
            f"{manifest.channels}; {_OURS}"
        )
    if classifier.class_ids is None:
        chosen = _by_name(classifier, manifest, setting)
    else:
        without = [entry for entry in classes if not is_wordnet_id(entry.id)]
        if without:
            raise SettingError(
                f"{setting}: {what} knows its classes by WordNet id, but {len(without)} of the data's {len(classes)} classes "
                f"have none (the first is {without[0].name!r} with the id {without[0].id!r}); make the shards from folders "
                f"that are named by WordNet id, or {_OURS}"
            )
        places = {key: place for place, key in enumerate(classifier.class_ids)}
        unknown = [entry for entry in classes if entry.id not in places]
        if unknown:
            raise SettingError(
                f"{setting}: {what} has no class {unknown[0].id} ({unknown[0].name}) nor {len(unknown) - 1} others of the "
                f"data's {len(classes)} classes; choose a classifier of these classes, or select those that it knows with "
                "data.classes"
            )
        chosen = [places[entry.id] for entry in classes]
    if chosen == list(range(len(classifier.class_names))):
        return None
    return torch.tensor(chosen)


def _by_name(classifier: Classifier, manifest: Manifest, setting: str) -> list[int]:
    theirs, ours, what = classifier.class_names, manifest.class_names, classifier.description
    if len(theirs) != len(ours):
        raise SettingError(
            f"{setting}: {what} was trained for {len(theirs)} classes, the data has {len(ours)}; {_OURS}"
        )
    if theirs == ours:
        return list(range(len(ours)))
    unknown = [name for name in ours if theirs.count(name) != 1]
    if unknown:
        raise SettingError(f"{setting}: {what} has no class {unknown[0]!r}, which the data has; {_OURS}")
    return [theirs.index(name) for name in ours]
