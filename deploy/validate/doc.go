// Package validate has the tests of what lies beside it: the systemd units and
// the Kubernetes manifests. It is a module of its own, so that Kubernetes' types
// are no dependency of Sluice.
package validate
