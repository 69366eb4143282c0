# Two images, for training and for serving; docs/container.md says how to build and run them.

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 1000 app
WORKDIR /app
# Packages first: they are installed again only if pyproject.toml changes.
COPY pyproject.toml README.md ./
RUN mkdir src && touch src/__init__.py

FROM base AS serve
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu --editable '.[deploy]'
COPY src src
COPY configs configs
RUN mkdir data logs && chown app data logs
USER 1000
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Not as CMD, which any other option would replace; a later --ckpt_path takes precedence.
ENTRYPOINT ["python", "-m", "src.serve", "--host", "0.0.0.0", "--ckpt_path", "/model/best.ckpt"]

# The last one is built if no --target is given.
FROM base AS train
RUN pip install --no-cache-dir --editable '.[sample]'
COPY src src
COPY configs configs
RUN mkdir data logs && chown app data logs
USER 1000
ENTRYPOINT ["python", "-m", "src.train"]
CMD ["--help"]
