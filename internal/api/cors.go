package api

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// AnyOrigin in Config.CORSOrigins allows the pages of every origin.
const AnyOrigin = "*"

// Values of the headers that tell a browser what a page of an allowed origin may
// send and read. Browsers keep the answer to a preflight for two hours at most.
const (
	corsMethods = "GET, HEAD, POST, PUT, PATCH, DELETE"
	corsHeaders = "Authorization, X-API-Key, Content-Type, Content-Encoding, Prefer, X-Request-Id, " +
		"Mcp-Protocol-Version, Mcp-Method, Mcp-Name" // of clients of /mcp
	corsExposed = "Accept-Encoding, Allow, Date, Location, Preference-Applied, Retry-After, WWW-Authenticate, X-Request-Id"
	corsMaxAge  = "7200"
)

// checkOrigin says what is wrong with an element of Config.CORSOrigins. An origin
// is compared as text with what browsers send, so it must be written as they do.
func checkOrigin(origin string) error {
	if origin == AnyOrigin {
		return nil
	}
	u, err := url.Parse(origin)
	if err != nil || u.Scheme == "" || u.Host == "" || origin != u.Scheme+"://"+u.Host {
		return fmt.Errorf("%q is not an origin such as https://app.example or http://localhost:3000, or *", origin)
	}
	port := u.Port()
	switch {
	case strings.Contains(origin, "*"):
		return fmt.Errorf("%q: a * stands alone, for every origin; name each one otherwise", origin)
	case origin != strings.ToLower(origin) || u.Hostname() == "" || strings.HasSuffix(u.Host, ":"):
		return fmt.Errorf("%q is not written as browsers send it: in lower case, with a host", origin)
	case u.Scheme == "https" && port == "443" || u.Scheme == "http" && port == "80":
		return fmt.Errorf("%q: browsers do not send the default port", origin)
	}
	return nil
}

// CheckOrigins refuses origins that no browser sends, and every origin on a
// server without API keys.
func CheckOrigins(origins []string, haveKeys bool) error {
	var errs []error
	for _, origin := range origins {
		errs = append(errs, checkOrigin(origin))
	}
	if !haveKeys && slices.Contains(origins, AnyOrigin) {
		errs = append(errs, errors.New("without API keys, * would let every page that somebody opens read and write here: name the origins, or configure API keys"))
	}
	return errors.Join(errs...)
}

// cors lets pages of the allowed origins read the answers of next, refusals too,
// and answers the preflights of browsers. Where no origin is allowed it is next.
//
// A page names its key in a header, and never sends what the browser keeps, so
// credentials are not allowed.
func (s *Server) cors(next http.Handler) http.Handler {
	if len(s.cfg.CORSOrigins) == 0 {
		return next
	}
	anyOrigin := slices.Contains(s.cfg.CORSOrigins, AnyOrigin)
	preflight := &endpoint{s: s, route: &route{handle: (*Server).preflight}, metrics: s.metrics.route("other")}
	refused := &endpoint{s: s, route: &route{handle: refuseOrigin}, metrics: s.metrics.route("other")}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		origin := r.Header.Get("Origin")
		allowed := anyOrigin || slices.Contains(s.cfg.CORSOrigins, origin)
		switch {
		case anyOrigin:
			h.Set("Access-Control-Allow-Origin", AnyOrigin)
		case allowed:
			h.Set("Access-Control-Allow-Origin", origin)
			fallthrough
		default:
			h.Set("Vary", "Origin")
		}
		isPreflight := r.Method == http.MethodOptions && origin != "" && r.Header.Get("Access-Control-Request-Method") != ""
		switch {
		case isPreflight && allowed:
			preflight.ServeHTTP(w, r)
		case isPreflight:
			refused.ServeHTTP(w, r)
		default:
			if allowed {
				h.Set("Access-Control-Expose-Headers", corsExposed)
			}
			next.ServeHTTP(w, r)
		}
	})
}

// preflight tells a browser what a page may send. It needs no key: browsers send
// none with it.
func (s *Server) preflight(x *exchange) error {
	h := x.w.Header()
	h.Set("Access-Control-Allow-Methods", corsMethods)
	h.Set("Access-Control-Allow-Headers", corsHeaders)
	h.Set("Access-Control-Max-Age", corsMaxAge)
	x.status = http.StatusNoContent
	x.w.WriteHeader(http.StatusNoContent)
	return nil
}

func refuseOrigin(*Server, *exchange) error {
	return &problem{
		status: http.StatusForbidden, code: CodeForbidden,
		detail: "pages of this origin may not use the API: --cors-origins does not name it",
	}
}
