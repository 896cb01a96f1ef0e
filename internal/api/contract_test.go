package api_test

import (
	"io"
	"net/http"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/sdk/spec"
)

// contract is the OpenAPI document, and what finds an operation in it.
type contract struct {
	doc    *openapi3.T
	router routers.Router
}

var readContract = sync.OnceValues(func() (*contract, error) {
	doc, err := openapi3.NewLoader().LoadFromData([]byte(spec.OpenAPI()))
	if err != nil {
		return nil, err
	}
	router, err := gorillamux.NewRouter(doc) // validates the document
	if err != nil {
		return nil, err
	}
	for _, text := range []string{"application/x-ndjson", "application/yaml", "application/vnd.apache.parquet"} { // of which the document says no more
		openapi3filter.RegisterBodyDecoder(text, openapi3filter.PlainBodyDecoder)
	}
	return &contract{doc, router}, nil
})

// input is the request as the document has it.
func (c *contract) input(req *http.Request) (*openapi3filter.RequestValidationInput, error) {
	route, params, err := c.router.FindRoute(req)
	if err != nil {
		return nil, err
	}
	return &openapi3filter.RequestValidationInput{
		Request: req, PathParams: params, Route: route,
		Options: &openapi3filter.Options{
			MultiError: true, IncludeResponseStatus: true, SkipSettingDefaults: true,
			AuthenticationFunc:      openapi3filter.NoopAuthenticationFunc, // tested in auth_test.go
			SchemaValidationOptions: []openapi3.SchemaValidationOption{openapi3.EnableJSONSchema2020(), openapi3.EnableFormatValidation()},
		},
	}, nil
}

// answered holds an answer to the document.
func (c *contract) answered(req *http.Request, a answer) error {
	input, err := c.input(req)
	if err != nil {
		return err
	}
	return openapi3filter.ValidateResponse(req.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: a.status, Header: a.header,
		Body: io.NopCloser(strings.NewReader(a.body)), Options: input.Options,
	})
}

func checkContract(tb testing.TB, req *http.Request, a answer) {
	tb.Helper()
	c, err := readContract()
	if err != nil {
		tb.Fatal(err)
	}
	if err := c.answered(req, a); err != nil {
		tb.Errorf("%s %s: answer %d breaks the contract: %v", req.Method, req.URL, a.status, err)
	}
	if a.status >= http.StatusBadRequest || req.Header.Get("Content-Encoding") != "" {
		return // what is refused need not conform, what is compressed cannot be read
	}
	if req.Header.Get("Content-Type") == "" {
		if req.URL.Path == "/events" {
			return // told apart by its first byte
		}
		req.Header.Set("Content-Type", "application/json") // what the resource takes it for
	}
	input, err := c.input(req)
	if err == nil {
		err = openapi3filter.ValidateRequest(req.Context(), input)
	}
	if err != nil {
		tb.Errorf("%s %s: accepted a request that breaks the contract: %v", req.Method, req.URL, err)
	}
}

// TestDocumentMatchesRoutes holds the document to the routes, both ways.
func TestDocumentMatchesRoutes(t *testing.T) {
	c, err := readContract()
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for path, item := range c.doc.Paths.Map() {
		for method := range item.Operations() {
			documented = append(documented, method+" "+path)
		}
	}
	routes := api.Routes()
	sort.Strings(routes)
	sort.Strings(documented)
	if diff := cmp.Diff(routes, documented); diff != "" {
		t.Errorf("routes and document differ (-routes +document):\n%s", diff)
	}
}

// TestContractCanFail shows that the validation in these tests would notice.
func TestContractCanFail(t *testing.T) {
	c, err := readContract()
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]answer{
		"status":  {status: 418, header: http.Header{"Content-Type": {"application/json"}}, body: `{"id":"a","receipt":"1.2.3"}`},
		"member":  {status: 202, header: http.Header{"Content-Type": {"application/json"}, "Location": {"/event/a"}}, body: `{"id":"a","receipt":"1.2.3","x":1}`},
		"type":    {status: 202, header: http.Header{"Content-Type": {"application/json"}, "Location": {"/event/a"}}, body: `{"id":1,"receipt":"1.2.3"}`},
		"header":  {status: 202, header: http.Header{"Content-Type": {"application/json"}}, body: `{"id":"a","receipt":"1.2.3"}`},
		"problem": {status: 400, header: http.Header{"Content-Type": {"application/problem+json"}}, body: `{"code":"nonsense"}`},
	} {
		r := request("POST", "/event", small)
		if err := c.answered(r, a); err == nil {
			t.Errorf("%s: a wrong answer passes", name)
		}
	}
}
