# Three targets: ingest, tiktok-worker (production, from scratch, one static binary each) and workshop (simulators, never for
# production). Works with BuildKit and with the classic builder.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
COPY migrations migrations
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X purchase-relay/internal/process.version=${VERSION}" -o /out/ ./cmd/ingest ./cmd/tiktok-worker
RUN go run ./internal/dev/cmd/licences -texts > /out/LICENCES
RUN CGO_ENABLED=0 go build -trimpath -o /workshop/ ./internal/dev/cmd/tiktoksim ./internal/dev/cmd/stripegen

FROM scratch AS ingest
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/LICENCES /out/ingest /
USER 65532:65532
EXPOSE 8080 8081
ENTRYPOINT ["/ingest"]

FROM scratch AS tiktok-worker
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/LICENCES /out/tiktok-worker /
USER 65532:65532
EXPOSE 8082
ENTRYPOINT ["/tiktok-worker"]

FROM scratch AS workshop
COPY --from=build /workshop/tiktoksim /tiktoksim
COPY --from=build /workshop/stripegen /stripegen
USER 65532:65532
EXPOSE 8083
ENTRYPOINT ["/tiktoksim"]
