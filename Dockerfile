# One image for every process. Built from hashes; xgboost-cpu is the same library without CUDA.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /venv
COPY deploy/requirements.lock ./
RUN /venv/bin/pip install --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md ./
COPY hedge_pipeline ./hedge_pipeline
RUN /venv/bin/pip install --no-deps --no-build-isolation . \
    && find /venv/lib -type d -name tests -prune -exec rm -rf {} + \
    && /venv/bin/python -m compileall -q /venv/lib

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin hedge \
    && mkdir /data && chown hedge:hedge /data
COPY --from=build /venv /venv
WORKDIR /app
COPY dagster.yaml workspace.yaml ./
COPY deploy/dagster.postgres.yaml deploy/workspace.yaml ./deploy/
ENV PATH=/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    MALLOC_TRIM_THRESHOLD_=100000 \
    ARROW_DEFAULT_MEMORY_POOL=system \
    HEDGE_DATA_URL=/data \
    DAGSTER_HOME=/data/dagster_home
USER 10001:10001
HEALTHCHECK --interval=5m --timeout=30s --start-period=3m --retries=2 CMD ["hedge", "health"]
CMD ["hedge", "up", "--headless"]
