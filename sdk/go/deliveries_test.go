package sluice_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

// A delivery is a case of deliveries.json.
type delivery struct {
	Name        string
	Writes      []deliveredWrite
	More        [][]deliveredWrite
	LimitBytes  int `json:"limit_bytes"`
	WaitApplied int `json:"wait_applied"`
	Answers     []deliveryAnswer
	Requests    [][]string
	Paths       []string
	Reported    []deliveryError
	Accepted    [][2]string
}

type deliveredWrite struct {
	Op     string
	ID     string
	Minted bool
	Bytes  int
}

type deliveryAnswer struct {
	Status       int
	Headers      map[string]string
	Body         string
	HangUp       bool `json:"hang_up"`
	MissingBytes int  `json:"missing_bytes"`
}

type deliveryError struct {
	ID     string `json:"id"`
	Status int    `json:"status"`
	Code   string `json:"code"`
}

// deliveryServer answers as a delivery says, and then accepts every write.
type deliveryServer struct {
	t        *testing.T
	delivery *delivery
	url      *url.URL

	mu       sync.Mutex
	requests [][]string
	paths    []string
	accepted [][2]string
	prefer   []string
}

func (s *deliveryServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	if _, err := body.ReadFrom(r.Body); err != nil {
		s.t.Errorf("read the body: %v", err)
	}
	var ids []string
	var items []item
	for line := range bytes.Lines(body.Bytes()) {
		i := make(item)
		if err := json.Unmarshal(line, &i); err != nil {
			s.t.Errorf("the item %.100s: %v", line, err)
		}
		items, ids = append(items, i), append(ids, i.id())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method != http.MethodPost {
		s.t.Errorf("a %s", r.Method)
	}
	n := len(s.requests)
	s.requests, s.paths, s.prefer = append(s.requests, ids), append(s.paths, r.RequestURI), append(s.prefer, r.Header.Get("Prefer"))
	switch {
	case s.delivery.LimitBytes > 0 && body.Len() > s.delivery.LimitBytes:
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
	case n < len(s.delivery.Answers):
		s.answer(w, &s.delivery.Answers[n])
	default:
		for _, i := range items {
			s.accepted = append(s.accepted, [2]string{i.op(), i.id()})
		}
		w.WriteHeader(http.StatusAccepted)
		_, _ = w.Write([]byte(`{"results":[` + strings.TrimSuffix(strings.Repeat(acknowledged+",", len(items)), ",") + "]}"))
	}
}

func (s *deliveryServer) answer(w http.ResponseWriter, a *deliveryAnswer) {
	if a.HangUp {
		panic(http.ErrAbortHandler)
	}
	replace := strings.NewReplacer("{origin}", s.url.String(), "{scheme}", s.url.Scheme, "{host}", s.url.Hostname(), "{port}", s.url.Port())
	for name, value := range a.Headers {
		w.Header().Set(name, replace.Replace(value))
	}
	if a.MissingBytes > 0 {
		w.Header().Set("Content-Length", strconv.Itoa(len(a.Body)+a.MissingBytes))
	}
	w.WriteHeader(a.Status)
	_, _ = w.Write([]byte(a.Body))
	if a.MissingBytes > 0 {
		panic(http.ErrAbortHandler)
	}
}

func readDeliveries(t *testing.T, into any) {
	t.Helper()
	text, err := os.ReadFile("../spec/vectors/deliveries.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

func TestDeliveries(t *testing.T) {
	var vectors struct{ Deliveries []delivery }
	readDeliveries(t, &vectors)
	if len(vectors.Deliveries) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Deliveries {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			s := &deliveryServer{t: t, delivery: &v}
			server := httptest.NewServer(s)
			t.Cleanup(server.Close)
			s.url, _ = url.Parse(server.URL)
			var reported errorLog
			client := openAny(t, sluice.Options{
				URL: server.URL, BatchAgeMax: time.Hour, OnError: reported.add, WaitApplied: time.Duration(v.WaitApplied) * time.Second,
			})
			names := make(map[string]string) // of ids that were minted
			var want [][2]string
			for _, writes := range append([][]deliveredWrite{v.Writes}, v.More...) {
				for _, w := range writes {
					names[w.track(t, client)] = w.ID
					want = append(want, [2]string{cmp.Or(w.Op, "create"), w.ID})
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				if err := client.Flush(ctx); err != nil {
					t.Fatal(err)
				}
				cancel()
			}

			got := []deliveryError{}
			for _, e := range reported.all() {
				var refusal *sluice.APIError
				if !errors.As(e, &refusal) {
					t.Fatalf("reported %v", e)
				}
				got = append(got, deliveryError{names[e.ID], refusal.Status, refusal.Code})
				if errors.Is(e, sluice.ErrIDTaken) != (refusal.Code == "id_taken") || errors.Is(e, sluice.ErrEventDeleted) != (refusal.Code == "event_deleted") {
					t.Errorf("%v is no sentinel", e)
				}
			}
			same(t, "reported", v.Reported, got)
			for _, ids := range s.requests {
				for i := range ids {
					ids[i] = names[ids[i]]
				}
			}
			if v.Requests != nil {
				same(t, "requests", v.Requests, s.requests)
			}
			if v.Paths != nil {
				same(t, "paths", v.Paths, s.paths)
			}
			if v.WaitApplied > 0 && !slices.Equal(slices.Compact(s.prefer), []string{"wait=" + strconv.Itoa(v.WaitApplied)}) {
				t.Errorf("Prefer is %q", s.prefer)
			}
			if v.Accepted != nil {
				same(t, "accepted", v.Accepted, s.accepted)
			} else if v.WaitApplied == 0 { // whose answers of the case accept
				want = slices.DeleteFunc(want, func(w [2]string) bool {
					return slices.ContainsFunc(v.Reported, func(e deliveryError) bool { return e.ID == w[1] })
				})
				same(t, "accepted", want, s.accepted)
			}
		})
	}
}

func same(t *testing.T, what string, want, got any) {
	t.Helper()
	if !reflect.DeepEqual(want, got) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// track makes the write's call and returns the event's id.
func (w *deliveredWrite) track(t *testing.T, client *sluice.Client) string {
	t.Helper()
	latency := 1.0
	switch w.Op {
	case "update":
		if err := client.UpdateEvent(context.Background(), w.ID, sluice.Fields{Latency: &latency}); err != nil {
			t.Fatal(err)
		}
		return w.ID
	case "delete":
		if err := client.DeleteEvent(context.Background(), w.ID); err != nil {
			t.Fatal(err)
		}
		return w.ID
	}
	e := event("c1")
	if !w.Minted {
		e.ID = w.ID
	}
	if w.Bytes > 0 {
		e.Input = strings.Repeat("x", w.Bytes)
	}
	return mustTrack(t, client, e)
}

func TestVectorsOfRedirects(t *testing.T) {
	var vectors struct {
		Redirects []struct {
			Status         int
			From, Location string
			Followed       bool
		}
	}
	readDeliveries(t, &vectors)
	if len(vectors.Redirects) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Redirects {
		from, err := url.Parse(v.From)
		if err != nil {
			t.Fatal(err)
		}
		to, err := from.Parse(v.Location)
		if err != nil {
			t.Fatal(err)
		}
		if got := sluice.MayFollow(v.Status, from, to); got != v.Followed {
			t.Errorf("%d from %s to %s: %t", v.Status, v.From, v.Location, got)
		}
	}
}
