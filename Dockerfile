# Menagerie in a container.
#   GPU:  docker build -t menagerie .
#   CPU:  docker build -t menagerie --build-arg BASE=debian:12-slim .
#   run:  docker run --rm --gpus all --shm-size 8g -v "$PWD/runs:/opt/menagerie/runs" -v "$PWD/data:/opt/menagerie/data" \
#             -e PROCESSES=4 menagerie train configs/imagenet128_projection.yaml
# PyTorch brings CUDA's libraries; the base gives the driver's hooks. Any Debian or Ubuntu with Python 3.11 or later will do.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04
FROM ${BASE}

# Layers from what changes least to what changes most: system, user, packages, source, labels.
# The versions of Debian's packages are those of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 --shell /bin/bash menagerie \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    VIRTUAL_ENV=/opt/venv \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    OMP_WAIT_POLICY=passive

# The dependencies, in the exact versions of constraints.txt, by these two files alone: a change of the source builds nothing here.
WORKDIR /opt/menagerie
ARG EXTRAS=evaluation
COPY pyproject.toml constraints.txt cluster/requirements.py ./
RUN python requirements.py pyproject.toml "${EXTRAS}" > /tmp/requirements.txt \
    && pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt requirements.py

COPY LICENSE README.md ./
COPY data_pipeline ./data_pipeline
COPY trainer ./trainer
COPY configs ./configs
COPY cluster ./cluster
# No index and no build tools: the project itself has nothing to compile, and PYTHONPATH finds it from everywhere.
ENV PYTHONPATH=/opt/menagerie
# What a run writes: mount folders here, or give URLs (s3://bucket/...).
RUN mkdir data runs logs && chown menagerie:menagerie data runs logs

USER 10001
ENTRYPOINT ["/opt/menagerie/cluster/entrypoint.sh"]
CMD ["help"]

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Menagerie" \
      org.opencontainers.image.description="Class-conditional GANs at scale: exact, elastic, preemption-safe training" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
