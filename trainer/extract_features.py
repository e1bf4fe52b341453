"""`python -m trainer.extract_features NETWORK SHARDS OUTPUT`: a frozen classifier's features of images, as shards of vectors.

Sample n of OUTPUT is made of sample n of SHARDS and has its class. Equal images are computed once. The manifest names the
network, and repeats what that of the images says of licence and attribution.
"""

import argparse
import hashlib
import sys

import numpy as np

from data_pipeline.make_shards.vectors import write_vectors
from data_pipeline.manifest.format import Manifest
from data_pipeline.reading.stream import DataConfig
from trainer.foundation.commands import run_command
from trainer.metrics.features import FeatureNetwork, open_features
from trainer.processes.launch import read_launch
from trainer.trained.real import manifest_of, real_chunks


def features_of(
    data: DataConfig, network: FeatureNetwork
) -> tuple["np.ndarray[tuple[int, int], np.dtype[np.float32]]", list[int]]:
    """Features [N, F] and classes [N] of all samples, in the shards' order."""
    samples = manifest_of(data).samples
    features, classes = np.zeros((samples, network.dimension), dtype=np.float32), [0] * samples
    known: dict[bytes, int] = {}
    for chunk in real_chunks(data):
        ids, images = chunk.ids[: chunk.new].tolist(), chunk.images[: chunk.new]
        digests = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
        fresh = {digest: row for row, digest in reversed(list(enumerate(digests))) if digest not in known}
        if fresh:
            rows = sorted(fresh.values())
            made = network.both(images[rows])[0].float().cpu().numpy()
            for row, vector in zip(rows, made, strict=True):
                features[ids[row]] = vector
                known[digests[row]] = ids[row]
        for number, digest, label in zip(ids, digests, chunk.labels.tolist(), strict=False):
            features[number], classes[number] = features[known[digest]], label
    return features, classes


def notice_of(manifest: Manifest, network: FeatureNetwork) -> dict[str, str]:
    """What the vectors' manifest says: the network, and what the images' says."""
    said = dict(manifest.options.get("notice", {}))
    return said | {"features": network.description, "features_digest": network.digest, "images": manifest.fingerprint}


def main(arguments: list[str]) -> int:
    """Compute, write; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainer.extract_features", description=__doc__)
    parser.add_argument(
        "network", metavar="NETWORK", help="as --features of trainer.evaluate, for example efficientnet_lite0"
    )
    parser.add_argument("shards", metavar="SHARDS", help="shards of images")
    parser.add_argument("output", metavar="OUTPUT", help="folder or URL for the shards of vectors")
    parser.add_argument("--overwrite", action="store_true", help="remove the shards that OUTPUT holds")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    options = parser.parse_args(arguments)
    data = DataConfig(shards=options.shards)
    manifest = manifest_of(data)
    network = open_features(options.network, manifest.channels, read_launch(options.device).device, "NETWORK")
    features, classes = features_of(data, network)
    made = write_vectors(
        options.output,
        features,
        classes if manifest.labelled else None,
        manifest.class_names,
        overwrite=options.overwrite,
        notice=notice_of(manifest, network),
        part=True,
    )
    print(
        f"{options.output}: {made.samples} {made.content}, by {network.description}; fingerprint {made.fingerprint[:16]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
