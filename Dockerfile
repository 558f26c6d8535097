# One image for every party: the three services, the operator and the sites of the demo. No root, nothing to compile.
# The base is pinned by tag. Where builds must be repeatable bit by bit, pin its digest:
#   docker build --build-arg BASE=python:3.11-slim@sha256:... .
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# services: what the three services need; demo: the digits; tracing: OpenTelemetry. A production image needs no demo.
ARG EXTRAS=services,demo,tracing
WORKDIR /src
RUN python -m venv /opt/tacit
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY fl_core ./fl_core
COPY client_sdk ./client_sdk
COPY services ./services
COPY cli ./cli
RUN /opt/tacit/bin/python -m pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"
# What only builds need does not run beside keys.
RUN /opt/tacit/bin/python -m pip uninstall --yes pip setuptools

FROM ${BASE}
LABEL org.opencontainers.image.title="Tacit" org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 tacit && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin tacit
# A volume takes over the owner of the folder that it is mounted on, so that a user without rights can write there.
RUN install -d -o 10001 -g 10001 -m 0700 \
    /enrolment /pki /pki/ca /pki/coordinator /pki/aggregator /pki/keyserver /pki/operator \
    /var/cache/tacit /var/lib/tacit && \
    install -d -o 10001 -g 10001 -m 0755 /pki/postgres-password /pki/grafana-password
COPY --from=build /opt/tacit /opt/tacit
ENV PATH=/opt/tacit/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/var/cache/tacit
USER 10001:10001
WORKDIR /var/lib/tacit
ENTRYPOINT ["tacit"]
CMD ["--help"]
