"""One process of a training's data side: reads its replicas' batches, logs what it saw, commits how far it is.

    python chaos_consumer.py CONFIG.json

CONFIG: `data` (DataConfig's fields), `seed`, `replicas`, `held`, `batch_size`, `first_batch`, `last_batch`, `log`. A
line of the log is `batch replica sample,sample,...`; a sample is told by the first bytes of its image. The last line
is `# ` and the statistics.
"""

import itertools
import json
import os
import sys
from pathlib import Path

from data_pipeline.reading.stream import DataConfig, open_stream


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    with (
        open(job["log"], "a") as log,
        open_stream(
            DataConfig(**job["data"]),
            seed=job["seed"],
            replicas=job["replicas"],
            held=job["held"],
            sizes=itertools.repeat(job["batch_size"]),
            first_position=job["first_batch"] * job["batch_size"],
        ) as stream,
    ):
        for number in range(job["first_batch"], job["last_batch"]):
            batch = next(stream)
            images = batch.images.numpy().astype(int)
            samples = images[..., 2, 2, 0] + 256 * images[..., 2, 3, 0]
            for replica, row in zip(job["held"], samples, strict=True):
                log.write(f"{number} {replica} {','.join(map(str, row))}\n")
            log.flush()
            os.fsync(log.fileno())
        log.write(f"# {json.dumps(stream.statistics())}\n")


if __name__ == "__main__":
    main()
