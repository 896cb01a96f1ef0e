# The image of Sluice: one static binary, without the embedded engines' library.
#
#   docker build -t sluice --build-arg VERSION=$(git describe --always) .
#
# /sbom.cdx.json in it lists every module of the binary (CycloneDX).
FROM golang:1.26-bookworm AS build
WORKDIR /src
# The modules change less often than the code, so they have a layer of their own.
COPY go.mod go.sum ./
RUN go mod download
RUN CGO_ENABLED=0 go install -trimpath github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
COPY . .
ARG VERSION=unknown
RUN CGO_ENABLED=0 go build -trimpath -tags noengine -ldflags "-s -w -X main.version=${VERSION}" -o /out/sluice ./cmd/sluice
RUN cyclonedx-gomod bin -json -std -version "${VERSION}" -output /out/sbom.cdx.json /out/sluice

FROM scratch
ARG VERSION=unknown
LABEL org.opencontainers.image.title="Sluice" \
      org.opencontainers.image.description="Event pipeline: HTTP API, Kafka, consumer, ClickHouse" \
      org.opencontainers.image.source="https://github.com/sluicehq/sluice" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# For TLS to Kafka and ClickHouse.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/ /
USER 65532:65532
EXPOSE 8080 9101
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 CMD ["/sluice", "healthcheck"]
ENTRYPOINT ["/sluice"]
CMD ["--help"]
