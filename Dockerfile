# An image with llmtrain in it, from a checkout:
#
#     docker build -t llmtrain .                                                        CPU
#     docker build -t llmtrain --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# GPUs need nothing more: PyTorch's packages bring CUDA, the host brings the driver. Data and runs
# are mounted: docker run --rm -v "$PWD/runs:/llmtrain/runs" llmtrain train model=gpt_micro

ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
WORKDIR /src
# First what rarely changes: PyTorch alone is most of the image.
COPY constraints.txt ./
RUN /venv/bin/pip install --constraint constraints.txt --index-url ${TORCH_INDEX} \
    --extra-index-url https://pypi.org/simple torch
# The dependencies of llmtrain: they change with pyproject.toml only, an empty package stands in.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir llmtrain conf && touch llmtrain/__init__.py \
    && /venv/bin/pip install --constraint constraints.txt '.[clean,tensorboard,wandb]' \
    && /venv/bin/pip uninstall --yes llmtrain
COPY llmtrain llmtrain
COPY conf conf
RUN /venv/bin/pip install --no-deps .

FROM ${BASE}
# A compiler is for train.compile=true, which has one make its kernels. Not pinned: Debian keeps no
# old versions, and the build would break in weeks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 llmtrain && install --directory --owner=llmtrain /llmtrain
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH
# By number: Kubernetes' runAsNonRoot looks at nothing else.
USER 1000
WORKDIR /llmtrain
ENTRYPOINT ["llmtrain"]
CMD ["--help"]
