"""Train a small projection GAN on Fashion-MNIST for 200 iterations, and draw with it: all from Python, in one process.

Run it in the repository's folder, after `make data/fashion32/train/manifest.json`. The same command again resumes.
"""

import torch
from PIL import Image

from trainer.config import load_config
from trainer.processes.launch import read_launch, start_processes, stop_processes
from trainer.trained.pretrained import Generator, open_generator
from trainer.training.loop import train


def main() -> None:
    # One YAML is one experiment. Any setting can be overridden, as on the command line.
    run = "runs/example"
    config = load_config("configs/fashion32_projection.yaml", ["--run.dir", run, "--run.iterations", "200"])

    # The launch says on what to train: here one process, on a GPU if there is one.
    launch = read_launch()
    start_processes(launch)
    complete = train(config, launch)  # False if it was asked to stop
    stop_processes()
    print("complete" if complete else "stopped; the same command resumes")

    # The newest checkpoint becomes an export, which loads without the run.
    open_generator(run).save_pretrained("exports/example")
    generator = Generator.from_pretrained("exports/example")
    images = generator.sample(["Trouser", "Ankle boot"], count=8, seed=1)  # [16, 1, 32, 32] in [-1, 1]

    pixels = ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8).reshape(2, 8, 32, 32)
    grid = pixels.permute(0, 2, 1, 3).reshape(2 * 32, 8 * 32)  # a row for each class
    Image.fromarray(grid.numpy()).save(f"{run}/example.png")
    print(f"{run}/example.png")


if __name__ == "__main__":
    main()
