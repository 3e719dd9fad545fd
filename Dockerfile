# Runs one detector: see tools/docker_entry.sh for what it does, docker-compose.yml for how to start it.
FROM pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime

WORKDIR /app

# The image's torch and torchvision fit its CUDA: as constraints they cannot be replaced by what another package asks for.
COPY pyproject.toml README.md LICENSE ./
COPY enact enact
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip list --format=freeze | grep -E '^(torch|torchvision)==' > /tmp/constraints.txt \
    && python -m pip install --constraint /tmp/constraints.txt ".[detectors]" \
    && rm /tmp/constraints.txt

COPY . .

# /outputs is open to any user, so that `docker run --user` works and a new volume mounted there takes over these rights.
RUN useradd --create-home enact && install --directory --mode 1777 /outputs
USER enact

# Relative paths and downloaded backbone weights land on the volume.
WORKDIR /outputs
ENV TORCH_HOME=/outputs/.torch \
    PYTHONUNBUFFERED=1
VOLUME /outputs

ENTRYPOINT ["bash", "/app/tools/docker_entry.sh"]
