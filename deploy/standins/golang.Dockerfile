# Stands in for golang: this machine's Go, and the modules that it has.
FROM sluice-standin-debian
COPY go /usr/local/go
COPY proxy /go-proxy
# The modules come from files, so that the build needs no network.
ENV PATH=/usr/local/go/bin:/go/bin:$PATH GOPATH=/go GOPROXY=file:///go-proxy GOSUMDB=off GOTOOLCHAIN=local
