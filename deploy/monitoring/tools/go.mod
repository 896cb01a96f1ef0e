// Prometheus, for the tests of the dashboard and the alerts: scripts/install-prometheus.sh
// builds it from here. The version is the one of the image in compose.yaml: v0.313.5 is 3.13.5.
module github.com/sluicehq/sluice/deploy/monitoring/tools

go 1.26.0

require github.com/prometheus/prometheus v0.313.5
