# One image for scoring, training and serving on Kubernetes: `docker build -t REGISTRY/vig-ray:0.1 .`
FROM rayproject/ray:2.60.0-py311-gpu

COPY --chown=ray:users pyproject.toml constraints.txt README.md LICENSE /opt/vig-ray/
COPY --chown=ray:users vig_ray /opt/vig-ray/vig_ray
COPY --chown=ray:users serve_app /opt/vig-ray/serve_app
COPY --chown=ray:users jobs /opt/vig-ray/jobs

# torch first: its build for CUDA is the one on the default index, as constraints.txt pins it.
RUN pip install --no-cache-dir 'torch==2.13.0' torchvision \
 && pip install --no-cache-dir -c /opt/vig-ray/constraints.txt '/opt/vig-ray[vllm,traces]'

# A volume that is mounted here belongs to this user, then.
RUN mkdir -p /home/ray/.cache/huggingface

ENV RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
WORKDIR /opt/vig-ray
