package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// KeyReloadInterval is how often a [KeyStore] reads its file. A change takes
	// effect at the second reading that finds it, so a revoked key lives on for at
	// most twice this time.
	KeyReloadInterval = time.Second
	// KeysMax is the most keys of a file. Every request is compared with each.
	KeysMax = 1000
	// KeyFileBytesMax is the largest key file.
	KeyFileBytesMax = 1 << 20

	keyPrefix     = "sluice_"
	keyBytes      = 32
	keyNameMax    = 64
	presentedMax  = 256
	headerBearer  = "Authorization"
	headerPlain   = "X-Api-Key"
	bearerScheme  = "bearer "
	keyFileFields = 3
)

// Scope is a set of things that an API key may do.
type Scope uint8

// The scopes. None includes another.
const (
	// ScopeWrite allows creates, updates and deletes.
	ScopeWrite Scope = 1 << iota
	// ScopeRead allows reads of events and analytics.
	ScopeRead
	// ScopeAdmin allows metrics, and what concerns the whole service.
	ScopeAdmin
)

// ParseScopes reads scopes separated by commas: write, read, admin.
func ParseScopes(s string) (Scope, error) {
	var scopes Scope
	for name := range strings.SplitSeq(s, ",") {
		switch name {
		case "write":
			scopes |= ScopeWrite
		case "read":
			scopes |= ScopeRead
		case "admin":
			scopes |= ScopeAdmin
		default:
			return 0, errors.New("scopes must be some of write, read, admin, separated by commas")
		}
	}
	return scopes, nil
}

// String is the text that [ParseScopes] reads.
func (s Scope) String() string {
	var names []string
	for i, name := range [...]string{"write", "read", "admin"} {
		if s>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// GenerateKey makes an API key of 256 random bits and the line that admits it
// when it is added to the key file. The key itself is kept nowhere.
func GenerateKey(name string, scopes Scope) (key, line string, err error) {
	if err := checkKeyName(name); err != nil {
		return "", "", err
	}
	if scopes == 0 || scopes > ScopeWrite|ScopeRead|ScopeAdmin {
		return "", "", errors.New("a key needs at least one scope")
	}
	var b [keyBytes]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	key = keyPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	sum := sha256.Sum256([]byte(key))
	return key, name + ":" + scopes.String() + ":" + hex.EncodeToString(sum[:]), nil
}

func checkKeyName(name string) error {
	if name == "" || len(name) > keyNameMax || strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	}) {
		return fmt.Errorf("a key's name must be 1 to %d of a-z, A-Z, 0-9, dot, dash and underscore", keyNameMax)
	}
	return nil
}

// storedKey is a key of the file: its SHA-256 and what it may do.
type storedKey struct {
	sum    [sha256.Size]byte
	scopes Scope
}

// KeyStore holds the API keys of a file and follows its changes. Its methods
// may be called concurrently.
//
// The file has one key a line, name:scopes:hash, where hash is the SHA-256 of
// the key in hexadecimal; empty lines and lines that begin with # are skipped.
type KeyStore struct {
	path string
	log  *slog.Logger
	keys atomic.Pointer[[]storedKey]

	// The fields below are used by one goroutine at a time.

	// content is the file as it was when the keys in force were read from it.
	content []byte
	// seen is the file at the last reading, nil where that failed.
	seen []byte
	// broken is whether the last reading that settled found a mistake.
	broken bool
}

// OpenKeyStore reads the key file. The error says what is wrong with it, and
// in which line.
func OpenKeyStore(path string, log *slog.Logger) (*KeyStore, error) {
	k := &KeyStore{path: path, log: log}
	content, err := k.read()
	if err != nil {
		return nil, err
	}
	keys, err := k.parse(content)
	if err != nil {
		return nil, err
	}
	k.content, k.seen = content, content
	k.keys.Store(&keys)
	return k, nil
}

// Run reads the file every [KeyReloadInterval] until ctx ends, and returns nil.
//
// A change takes effect once two readings in a row have found the same content:
// a reading may meet a file that is only half written, and would revoke the
// keys that are still to come. A file that cannot be read or has a mistake leaves
// the last good keys in force, so that a slip of an editor locks nobody out; this
// is logged once. A file without any key is obeyed, and logged as a warning.
func (k *KeyStore) Run(ctx context.Context) error {
	tick := time.NewTicker(KeyReloadInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			k.follow(ctx)
		}
	}
}

// follow reads the file once, and puts a change that has settled into force.
func (k *KeyStore) follow(ctx context.Context) {
	content, err := k.read()
	if err != nil {
		k.seen = nil
		k.reject(ctx, err)
		return
	}
	settled := k.seen != nil && bytes.Equal(content, k.seen)
	k.seen = content
	if !settled || !k.broken && bytes.Equal(content, k.content) {
		return
	}
	keys, err := k.parse(content)
	if err != nil {
		k.reject(ctx, err)
		return
	}
	if len(keys) == 0 && k.Len() > 0 {
		k.log.LogAttrs(ctx, slog.LevelWarn, "key file has no key any more, so every request is refused", slog.String("path", k.path))
	} else {
		k.log.LogAttrs(ctx, slog.LevelInfo, "key file loaded", slog.Int("keys", len(keys)))
	}
	k.keys.Store(&keys)
	k.content, k.broken = content, false
}

// reject logs the first of several errors in a row.
func (k *KeyStore) reject(ctx context.Context, err error) {
	if !k.broken {
		k.log.LogAttrs(ctx, slog.LevelError, "key file is broken, the last good keys stay in force",
			slog.String("path", k.path), slog.Any("error", err))
	}
	k.broken = true
}

// Len is the number of keys in force.
func (k *KeyStore) Len() int { return len(*k.keys.Load()) }

// Scopes is what the key may do; 0 where it is not known. It takes the same
// time for every key of a length, known or not.
func (k *KeyStore) Scopes(key string) Scope {
	if len(key) > presentedMax {
		return 0
	}
	var b [presentedMax]byte // keeps the copy off the heap
	sum := sha256.Sum256(b[:copy(b[:], key)])
	var scopes Scope
	keys := *k.keys.Load()
	for i := range keys {
		stored := &keys[i]
		scopes |= stored.scopes & -Scope(subtle.ConstantTimeCompare(sum[:], stored.sum[:]))
	}
	return scopes
}

// read returns the content of the file. Changes are found by content and not by
// the time of the last change, which may be too coarse to tell two changes apart.
// The content is never nil where the error is.
func (k *KeyStore) read() ([]byte, error) {
	f, err := os.Open(k.path)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, KeyFileBytesMax+1))
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	if len(content) > KeyFileBytesMax {
		return nil, fmt.Errorf("read keys: %s is longer than %d bytes", k.path, KeyFileBytesMax)
	}
	return content, nil
}

func (k *KeyStore) parse(content []byte) ([]storedKey, error) {
	keys, err := parseKeys(string(content))
	if err != nil {
		return nil, fmt.Errorf("read keys: %s: %w", k.path, err)
	}
	return keys, nil
}

// parseKeys never quotes a line in its error: somebody may have put a key there.
func parseKeys(content string) ([]storedKey, error) {
	var keys []storedKey
	number := 0
	for line := range strings.Lines(content) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if len(keys) == KeysMax {
			return nil, fmt.Errorf("line %d: there are more than %d keys", number, KeysMax)
		}
		parts := strings.Split(line, ":")
		if len(parts) != keyFileFields {
			return nil, fmt.Errorf("line %d: must be name:scopes:hash", number)
		}
		if err := checkKeyName(parts[0]); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		scopes, err := ParseScopes(parts[1])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		sum, err := hex.DecodeString(parts[2])
		if err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("line %d: the hash must be %d hexadecimal digits", number, 2*sha256.Size)
		}
		key := storedKey{sum: [sha256.Size]byte(sum), scopes: scopes}
		// Two lines of one key would leave it alive when one of them is taken out.
		if slices.ContainsFunc(keys, func(k storedKey) bool { return k.sum == key.sum }) {
			return nil, fmt.Errorf("line %d: the key is in the file already", number)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// presentedKey is the key that the request brings, or empty.
func presentedKey(h http.Header) string {
	if v := h[headerBearer]; len(v) > 0 {
		if len(v[0]) > len(bearerScheme) && strings.EqualFold(v[0][:len(bearerScheme)], bearerScheme) {
			return strings.TrimLeft(v[0][len(bearerScheme):], " ")
		}
		return ""
	}
	if v := h[headerPlain]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// authorize checks that the request's key has one of the scopes.
func (s *Server) authorize(x *exchange, scopes Scope) error {
	if s.cfg.Keys == nil || scopes == 0 {
		return nil
	}
	key := presentedKey(x.r.Header)
	if key == "" {
		x.w.Header().Set("Www-Authenticate", `Bearer realm="sluice"`)
		return &problem{
			status: http.StatusUnauthorized, code: CodeUnauthorized,
			detail: "send an API key as Authorization: Bearer <key>, or as X-API-Key",
		}
	}
	granted := s.cfg.Keys.Scopes(key)
	if granted == 0 {
		x.w.Header().Set("Www-Authenticate", `Bearer realm="sluice", error="invalid_token"`)
		return &problem{
			status: http.StatusUnauthorized, code: CodeUnauthorized, detail: "the API key is not known",
		}
	}
	if granted&scopes == 0 {
		x.w.Header().Set("Www-Authenticate", `Bearer realm="sluice", error="insufficient_scope"`)
		return &problem{
			status: http.StatusForbidden, code: CodeForbidden,
			detail: "the API key does not have the scope " + strings.ReplaceAll(scopes.String(), ",", " or "),
		}
	}
	return nil
}

// CheckBind refuses to serve the address without protection: one that is not
// loopback needs API keys, or somebody who says that it may be insecure. A host
// name other than localhost counts as not loopback.
func CheckBind(addr string, haveKeys, insecure bool) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("listen address must be host:port: %w", err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("listen address %q: the port must be a number up to 65535", addr)
	}
	if haveKeys || insecure || isLoopbackHost(host) {
		return nil
	}
	return fmt.Errorf("listen address %q is not loopback: configure API keys, or allow it with --insecure", addr)
}

// isLoopbackHost reports whether the host, without a port, is this machine.
func isLoopbackHost(host string) bool {
	if host = strings.TrimSuffix(host, "."); strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
	return err == nil && addr.Unmap().IsLoopback()
}

// IsLocal reports whether the request's Host header names this machine. A page
// that rebinds its own name to 127.0.0.1 sends that name, so it is not local.
func IsLocal(r *http.Request) bool {
	host := r.Host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	return isLoopbackHost(host)
}

// checkLocal guards a server that trusts everybody on its machine against the
// pages that a browser there has open: a page that rebinds its own name to
// 127.0.0.1 still sends that name as Host, and one that posts across sites
// says so in Origin or Sec-Fetch-Site.
func (s *Server) checkLocal(r *http.Request) error {
	if !IsLocal(r) {
		return &problem{
			status: http.StatusForbidden, code: CodeForbidden,
			detail: "a server on loopback without API keys answers only to localhost, 127.0.0.1 and [::1]",
		}
	}
	if s.crossOrigin.Check(r) != nil {
		return &problem{
			status: http.StatusForbidden, code: CodeForbidden,
			detail: "a server without API keys takes no writes from pages of another origin",
		}
	}
	return nil
}
