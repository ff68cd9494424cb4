# syntax=docker/dockerfile:1
# Images with the command unipixel-jax, for hosts with a CPU, with NVIDIA GPUs and with TPUs: docker build --target cpu|cuda|tpu .
# Python is the version with which constraints.txt was made.

FROM python:3.11-slim-bookworm AS cpu
RUN --mount=type=bind,target=/source,rw \
    pip install --no-cache-dir --constraint /source/constraints.txt "/source[app,eval,export,serve,train]"
RUN useradd --create-home --uid 1000 unipixel
USER 1000
WORKDIR /home/unipixel
ENTRYPOINT ["unipixel-jax"]
CMD ["--help"]

FROM cpu AS cuda
USER 0
RUN --mount=type=bind,target=/source,rw pip install --no-cache-dir --constraint /source/constraints.txt "/source[cuda]"
USER 1000

FROM cpu AS tpu
USER 0
RUN --mount=type=bind,target=/source,rw pip install --no-cache-dir --constraint /source/constraints.txt "/source[tpu]"
USER 1000
