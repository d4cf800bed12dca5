# Three targets: ingest, tiktok-worker (production, from scratch, one static binary each) and workshop (simulator and sender, never for
# production). Works with BuildKit and with the classic builder.
#
#   docker build --target ingest --build-arg VERSION=$(git describe --tags --always) --build-arg REVISION=$(git rev-parse HEAD) .
#
# The same sources, VERSION, REVISION and Go give the same binary, to the byte: nothing of the machine, the folder or the time is in it.
ARG VERSION=dev
ARG REVISION=unknown

FROM golang:1.26.8-bookworm AS build
WORKDIR /src
ENV CGO_ENABLED=0
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
COPY migrations migrations
# What does not change with the version comes first: it stays in the builder's cache.
RUN mkdir /workshop && go build -trimpath -buildvcs=false -ldflags "-s -w -buildid=" -o /workshop/ ./internal/tools/tiktoksim ./internal/tools/stripegen
RUN sh internal/tools/licences.sh texts /out/LICENCES && cp "$(go env GOROOT)/lib/time/zoneinfo.zip" /out/
ARG VERSION
ARG REVISION
RUN go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X purchase-relay/internal/service.version=${VERSION} -X purchase-relay/internal/service.commit=${REVISION}" -o /out/ ./cmd/ingest ./cmd/tiktok-worker

FROM scratch AS ingest
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="purchase-relay ingest" \
      org.opencontainers.image.description="Takes Stripe's webhooks into the ledger and relays paid purchases to NATS JetStream" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/LICENCES /out/zoneinfo.zip /out/ingest /
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
COPY --from=build /out/LICENCES /out/zoneinfo.zip /out/tiktok-worker /
ENV ZONEINFO=/zoneinfo.zip
USER 65532:65532
EXPOSE 8082
ENTRYPOINT ["/tiktok-worker"]

FROM scratch AS workshop
LABEL org.opencontainers.image.title="purchase-relay workshop" \
      org.opencontainers.image.description="A simulator of TikTok and a sender of Stripe's webhooks; not for production" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /workshop/tiktoksim /workshop/stripegen /
USER 65532:65532
EXPOSE 8083
ENTRYPOINT ["/tiktoksim"]
