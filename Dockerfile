# The image in which Ray and its jobs run.
#
#   CPU:   docker build -t manygate:0.2.0 .
#   CUDA:  docker build -t manygate:0.2.0-cuda --build-arg ACCELERATOR=cuda .
#
# If your package index needs a configuration of pip, pass it as a secret, which stays out of every layer:
#   --secret id=pip,src=$HOME/.config/pip/pip.conf
# PyPI itself has only the CUDA build of torch, which also runs on a CPU but is several GB larger. An index with the
# CPU builds of torch, named in that configuration, makes the CPU image small.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm
ARG ACCELERATOR=cpu

RUN useradd --uid 1000 --create-home manygate \
    # A login shell sets PATH anew; KubeRay can be configured to use one.
    && echo 'PATH=/manygate/.venv/bin:$PATH' > /etc/profile.d/manygate.sh

# The dependencies are a layer of their own, which is built again only if one of these files changes.
WORKDIR /manygate
COPY pyproject.toml README.md LICENSE ./
COPY cluster/__init__.py cluster/accelerator.py cluster/install.py cluster/requirements.lock cluster/versions.py cluster/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    PIP_NO_CACHE_DIR=1 python -m cluster.install --accelerator ${ACCELERATOR} --only-dependencies .venv

COPY manygate.py manygate_guard.py ./
COPY cluster cluster
COPY examples examples
COPY jobs jobs
COPY models models
COPY pipeline pipeline
RUN python -m cluster.install --accelerator ${ACCELERATOR} .venv

# Jobs call plain `python`. The project's folder belongs to root: runs go to storage that all machines share.
ENV PATH=/manygate/.venv/bin:$PATH RAY_USAGE_STATS_ENABLED=0
USER 1000
CMD ["python", "-m", "jobs.cli", "doctor"]
