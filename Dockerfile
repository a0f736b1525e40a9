# Two images of one build; the first is small where TORCH_INDEX names an index that has builds of torch for processors alone:
#   docker build --target cpu -t rlhf-lightning:cpu --build-arg TORCH_INDEX=<address> .
#   docker build --target cuda -t rlhf-lightning:cuda .
# Then: docker run --rm -v "$PWD:/work" rlhf-lightning:cpu train experiment=tiny paths.output_dir=runs/first
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS base
RUN useradd --create-home rlhf && mkdir /work && chown rlhf /work
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY rlhf_lightning /src/rlhf_lightning
COPY conf /src/conf
WORKDIR /work
ENTRYPOINT ["rlhf"]
CMD ["--help"]

FROM base AS cpu
ARG TORCH_INDEX=""
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' /src/constraints.txt)" \
 && pip install -c /src/constraints.txt "/src[joblib,lexicon,math]"
USER rlhf

FROM base AS cuda
RUN pip install -c /src/constraints.txt "/src[joblib,lexicon,math,quantization]"
USER rlhf
