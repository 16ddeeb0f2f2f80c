# FMplex on NVIDIA's Triton image, with the image's own tritonserver and Python 3.10. It is for one machine and, since
# Ray and Envoy (300 MB) are in it too, for the nodes of a fleet: docs/fleet.md.
# Another server version: docker build --build-arg TRITON_IMAGE=…
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:24.10-py3
FROM ${TRITON_IMAGE}

# What changes seldom comes first: dependencies are installed once and cached until pyproject.toml changes.
WORKDIR /opt/fmplex
COPY pyproject.toml LICENSE README.md ./
RUN mkdir -p fmplex_backend tools/fmplex_tools clients/fmplex_client \
    && touch fmplex_backend/__init__.py tools/fmplex_tools/__init__.py clients/fmplex_client/__init__.py \
    && pip install --no-cache-dir ".[tools,fleet]"

COPY fmplex_backend fmplex_backend
COPY tools tools
COPY clients clients
RUN pip install --no-cache-dir --no-deps --force-reinstall .

# Not root: the image has uid 1000 as triton-server. The repository that is mounted must be writable for it, or set
# `user:` in docker-compose.yml to its owner.
ENV FMPLEX_CACHE=/var/cache/fmplex \
    HF_HOME=/var/cache/fmplex/huggingface
RUN mkdir -p /workspace "$FMPLEX_CACHE" && chown -R 1000:1000 /workspace "$FMPLEX_CACHE"
USER 1000:1000
VOLUME ["/var/cache/fmplex"]

# HTTP, gRPC, Prometheus metrics
EXPOSE 8000 8001 8002

# A row of text through every physical FM: Triton calls itself ready over a host that has died. Starting it takes a second of a core.
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s --retries=3 \
    CMD ["fmplex", "health", "--timeout", "8"]

# SIGINT is what Ctrl-C sends: fmplex serve then stops the server and every process of its own.
STOPSIGNAL SIGINT
ENTRYPOINT ["fmplex", "serve"]
CMD ["--repository", "/workspace/model_repository", "--host", "0.0.0.0"]
