package mcp_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/sluicehq/sluice/internal/mcp"
)

// generated is a body that is made while it is read, so that the fake takes no memory. Now
// and then it tells how much memory lives.
type generated struct {
	parts []string
	times []int // how often each part comes
	at    string
	look  func()
	read  int
}

func (g *generated) add(part string, times int) {
	g.parts, g.times = append(g.parts, part), append(g.times, times)
}

func (g *generated) Read(p []byte) (int, error) {
	for g.at == "" {
		if len(g.parts) == 0 {
			return 0, io.EOF
		}
		if g.times[0] == 0 {
			g.parts, g.times = g.parts[1:], g.times[1:]
			continue
		}
		g.times[0]--
		g.at = g.parts[0]
	}
	n := copy(p, g.at)
	g.at = g.at[n:]
	if g.read += n; g.read > 256<<10 {
		g.read = 0
		g.look()
	}
	return n, nil
}

func (g *generated) Close() error { return nil }

// lookedAt is a writer that tells how much memory lives when the answer is there.
type lookedAt struct {
	*httptest.ResponseRecorder
	look func()
}

func (w lookedAt) Write(p []byte) (int, error) {
	w.look()
	return w.ResponseRecorder.Write(p)
}

// A call takes memory for what is shown, and not for what it reads: at most [mcp.CallBytes].
func TestMemoryOfACall(t *testing.T) {
	s := mcp.New(mcp.Config{})
	for name, piece := range map[string]string{"Chinese": "漢", "control characters": `\u0000`, "quotes": `\"`, "unseen": `\udb40\udc41`} {
		for _, size := range []int{200_000, 10_000_000} {
			var live uint64
			look := func() {
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				live = max(live, m.HeapAlloc)
			}
			many := strings.Repeat(piece, 1000/len(piece))
			api := roundTripper(func(r *http.Request) (*http.Response, error) {
				body := &generated{look: look}
				text := func() { body.add(`"`, 1); body.add(many, size/20/2/len(many)); body.add(`"`, 1) }
				if r.URL.Path == "/sql" {
					body.add(`{"columns":[{"name":"a","type":"String"}],"rows":[[`, 1)
					text()
					body.add(`],[`, 1)
					text()
					body.add(`]]}`, 1)
				} else {
					body.add(`{"events":[`, 1)
					for i := range 20 {
						if i > 0 {
							body.add(",", 1)
						}
						body.add(`{"id":"a","conversation_id":"c","event_name":"e","timestamp":"t","input":`, 1)
						text()
						body.add(`,"output":`, 1)
						text()
						body.add("}", 1)
					}
					body.add(`],"next_cursor":null}`, 1)
				}
				return &http.Response{StatusCode: 200, Header: http.Header{}, Body: body, Request: r}, nil
			})
			for tool, arguments := range map[string]string{
				"get_conversation": `{"conversation_id":"c","max_chars":40000}`,
				"sql":              `{"query":"` + strings.Repeat("x", mcp.MessageBytesMax-1000) + `","max_chars":40000}`,
			} {
				message := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":%s}}`, tool, arguments)
				live = 0
				look()
				before := live
				w := lookedAt{httptest.NewRecorder(), look}
				r := newPost(t.Context(), message)
				s.ServeAgent(w, r, api)
				if !strings.Contains(w.Body.String(), `"of":`) && size > 200_000 {
					t.Errorf("answered %.300s", w.Body)
				}
				t.Logf("%s of %s, %d bytes: %d bytes at most", tool, name, size, live-before)
				if live-before > mcp.CallBytes {
					t.Errorf("%s of %s, %d bytes, takes %d bytes", tool, name, size, live-before)
				}
			}
		}
	}
}
