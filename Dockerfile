# Three targets: ingest, tiktok-worker (production, from scratch, one static binary each) and workshop (simulator and sender, never for
# production). Works with BuildKit and with the classic builder.
#
#   docker build --target ingest --build-arg VERSION=$(git describe --tags --always) --build-arg REVISION=$(git rev-parse HEAD) .
#
# The same sources, VERSION, REVISION, COMMITTED and Go give the same binary, to the byte: nothing of the machine,
# the folder or the time of the build is in it.
ARG VERSION=dev
ARG REVISION=unknown
ARG COMMITTED=unknown

FROM golang:1.26.8-bookworm AS sources
WORKDIR /src
ENV CGO_ENABLED=0
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
COPY migrations migrations
# Compiled once for the stages below, which only link: another version takes seconds.
RUN go build -trimpath -buildvcs=false ./cmd/... ./internal/tools/tiktoksim ./internal/tools/stripegen

# The classic builder makes every stage above its target, so the workshop comes before the licences.
FROM sources AS tools
RUN mkdir /workshop && go build -trimpath -buildvcs=false -ldflags "-s -w -buildid=" -o /workshop/ ./internal/tools/tiktoksim ./internal/tools/stripegen

FROM scratch AS workshop
LABEL org.opencontainers.image.title="purchase-relay workshop" \
      org.opencontainers.image.description="A simulator of TikTok and a sender of Stripe's webhooks; not for production" \
      org.opencontainers.image.licenses="MIT"
COPY --from=tools /workshop/tiktoksim /workshop/stripegen /
USER 65532:65532
EXPOSE 8083
ENTRYPOINT ["/tiktoksim"]

# Before the version, so that it stays in the cache. go-licenses is compiled for the texts alone.
FROM sources AS licences
RUN sh internal/tools/licences.sh texts /out/LICENCES

FROM sources AS build
RUN mkdir /out && cp "$(go env GOROOT)/lib/time/zoneinfo.zip" /out/
ARG VERSION
ARG REVISION
ARG COMMITTED
RUN go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X purchase-relay/internal/service.version=${VERSION} -X purchase-relay/internal/service.commit=${REVISION} -X purchase-relay/internal/service.committed=${COMMITTED}" -o /out/ ./cmd/ingest ./cmd/tiktok-worker

FROM scratch AS ingest
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="purchase-relay ingest" \
      org.opencontainers.image.description="Takes Stripe's webhooks into the ledger and relays paid purchases to NATS JetStream" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=licences /out/LICENCES /
COPY --from=build /out/zoneinfo.zip /out/ingest /
ENV ZONEINFO=/zoneinfo.zip
USER 65532:65532
EXPOSE 8080 8081
ENTRYPOINT ["/ingest"]

FROM scratch AS tiktok-worker
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="purchase-relay tiktok-worker" \
      org.opencontainers.image.description="Delivers purchases from NATS JetStream to TikTok's Events API" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=licences /out/LICENCES /
COPY --from=build /out/zoneinfo.zip /out/tiktok-worker /
ENV ZONEINFO=/zoneinfo.zip
USER 65532:65532
EXPOSE 8082
ENTRYPOINT ["/tiktok-worker"]
