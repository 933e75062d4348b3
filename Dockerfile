# The Makefile's own steps in an image. Its build has not been run: no container engine was at hand.
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /hanmo
COPY . .
RUN make env
ENV PATH="/hanmo/.venv/bin:$PATH"
CMD ["make", "demo"]
