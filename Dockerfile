# CUDA 12 with the versions of constraints.txt.
#   docker build --tag medvlm_r1 .
#   docker run --rm --gpus all --shm-size 8g --volume "$PWD/outputs:/workspace/outputs" medvlm_r1 python run.py
FROM nvidia/cuda:12.6.3-base-ubuntu24.04

# Triton compiles a launcher in C for each kernel.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's Python refuses packages (PEP 668), so they go into an environment of the image's own user, ubuntu (1000).
ENV VENV=/opt/venv
ENV PATH=$VENV/bin:$PATH
RUN install --directory --owner=ubuntu --group=ubuntu "$VENV" /workspace /workspace/outputs
USER 1000
WORKDIR /workspace
RUN python3 -m venv "$VENV"

# torch is the largest layer: it is built again only if the constraints change.
# --build-arg TORCH_INDEX=URL names an index with builds of torch for CUDA 12; the default index may have CUDA 13's.
ARG TORCH_INDEX=
COPY --chown=ubuntu:ubuntu constraints.txt .
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch

# EXTRAS, such as [dicom,nifti,wandb]
ARG EXTRAS=
COPY --chown=ubuntu:ubuntu . .
RUN pip install --no-cache-dir --constraint constraints.txt --editable ".$EXTRAS"

CMD ["medvlm-r1", "--help"]
