# Menagerie's commands. Each does all its set-up, into .venv. Each can be run again at any time.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test proofs setup lint help study-conditioning study-finetune bench-classifier-loss bench-saving bench-evaluation bench-data bench-train study-speed gpu

PYTHON ?= python3
VENV := .venv
FASHION := data/fashion32
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# One thread per process, and threads that sleep while they wait: two that spin can be ten times slower than one.
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

setup: $(VENV)/.installed  ## the virtual environment, with the versions of constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@cluster/packages.sh python3-venv
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check uv
	uv pip install --quiet --python $(VENV)/bin/python --constraint constraints.txt --editable '.[evaluation,development]'
	touch $@

lint: setup  ## ruff, types, the import contract
	ruff check .
	ruff format --check .
	mypy
	lint-imports

test: lint  ## lint, and the tests (minutes)
	@cluster/packages.sh slurmctld slurmd slurm-client munge || echo "without them the tests of the cluster scripts skip"
	pytest -m "not slow" -n 2 --dist loadgroup tests

proofs: setup  ## the slow proofs with real kills, servers and clusters; ONLY=word picks
	@cluster/packages.sh slurmctld slurmd slurm-client munge buildah mmdebstrap || echo "without them the tests of the cluster scripts skip"
	pytest -m slow --timeout 3600 -q $(if $(ONLY),-k $(ONLY)) tests

bench-saving: setup $(FASHION)/train/manifest.json  ## what an asynchronous checkpoint costs training
	ACCELERATE_MIXED_PRECISION=$(DEMO_PRECISION) python -m benchmarks.bench_saving

bench-evaluation: setup  ## what each measure costs, in CPU seconds and memory
	python -m benchmarks.bench_evaluation

bench-train: setup  ## the training step next to its plain form and torch-mimicry, in CPU time (half an hour; leave the machine alone)
	python -m benchmarks.bench_train
	python -m benchmarks.bench_train --batch own --only fast
	python -m benchmarks.bench_scaling

gpu:  ## what only a GPU can answer, in two parts of 5 minutes; PARTS=a, b or sections, DEVICE=cpu is the small form
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-4} $(if $(wildcard $(VENV)/bin/python),python,$(PYTHON)) -m benchmarks.gpu_check \
	    $(PARTS) --device $(or $(DEVICE),cuda) $(if $(OUT),--out $(OUT)) $(if $(DATA),--data $(DATA)) $(if $(RESUME),--resume)

study-speed: setup $(FASHION)/classifier.safetensors  ## what the fast and the bf16 form learn, three seeds each (a quarter of an hour)
	python -m studies.study_speed --out runs/study_speed

bench-data: setup  ## the loader next to its peers, in images per CPU-second
	python -m benchmarks.bench_data

study-conditioning: setup $(FASHION)/classifier.safetensors  ## projection, concat and AC-GAN, three seeds each (20 minutes)
	python -m studies.study_conditioning --out runs/study_conditioning

bench-classifier-loss: setup $(FASHION)/classifier.safetensors  ## what the fine-tuning stage's classifier costs an iteration
	python -m benchmarks.bench_classifier_loss

study-finetune: setup $(FASHION)/classifier.safetensors $(FASHION)/independent.safetensors  ## the classifier-loss stage, three seeds (half an hour)
	python -m studies.study_finetune --out runs/study_finetune

demo: setup $(FASHION)/classifier.safetensors  ## real images -> class-conditional samples, in eight minutes
	accelerate launch --config_file cluster/launch/cpu.yaml --mixed_precision $(DEMO_PRECISION) \
	    trainer/main.py configs/fashion32_projection.yaml
	python -m trainer.evaluate runs/fashion32_projection --classifier $(FASHION)/classifier.safetensors --real $(FASHION)/test
	@echo
	@echo "samples:      runs/fashion32_projection/samples/"
	@echo "curves:       .venv/bin/tensorboard --logdir runs/fashion32_projection/tensorboard"
	@echo "checkpoints:  .venv/bin/python -m trainer.checkpoint list runs/fashion32_projection"

# bf16 where the CPU multiplies it in hardware: about twice as fast; one doubt is left (docs/results.md, "The doubt about bf16").
DEMO_PRECISION = $(shell grep -qsw avx512_bf16 /proc/cpuinfo && echo bf16 || echo no)

data/fashion-mnist/.complete: | setup
	@cluster/packages.sh dataset-fashion-mnist
	python -m data_pipeline.make_shards.sources.fashion_mnist data/fashion-mnist
	touch $@

$(FASHION)/train/manifest.json $(FASHION)/test/manifest.json: $(FASHION)/%/manifest.json: data/fashion-mnist/.complete
	python -m data_pipeline.make_shards idx data/fashion-mnist $(FASHION)/$* --split $*

# Judges what the first one guides (make study-finetune): another seed, another width.
$(FASHION)/independent.safetensors: $(FASHION)/train/manifest.json $(FASHION)/test/manifest.json
	python -m trainer.train_classifier $(FASHION)/train $(FASHION)/test --out $@ --seed 1 --width 24 --minimum 0.9

$(FASHION)/classifier.safetensors: $(FASHION)/train/manifest.json $(FASHION)/test/manifest.json
	python -m trainer.train_classifier $(FASHION)/train $(FASHION)/test --out $@ --minimum 0.9
