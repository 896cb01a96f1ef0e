//go:build !race

package api_test

import (
	"io"
	"net/http"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	validatorconfig "github.com/pb33f/libopenapi-validator/config"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/sdk/spec"
)

// contract validates against the OpenAPI document.
var contract = sync.OnceValues(func() (validator.Validator, error) {
	doc, err := libopenapi.NewDocument([]byte(spec.OpenAPI()))
	if err != nil {
		return nil, err
	}
	v, errs := validator.NewValidator(doc, validatorconfig.WithFormatAssertions())
	if len(errs) > 0 {
		return nil, errs[0]
	}
	return v, nil
})

// readContract reads the document now, if it was not read before.
func readContract() { _, _ = contract() } // who uses it is told the error

func checkContract(tb testing.TB, req *http.Request, a answer) {
	tb.Helper()
	v, err := contract()
	if err != nil {
		tb.Fatal(err)
	}
	res := &http.Response{
		StatusCode: a.status, Header: a.header, Request: req,
		Body: io.NopCloser(strings.NewReader(a.body)), ContentLength: int64(len(a.body)),
	}
	if ok, errs := v.ValidateHttpResponse(req, res); !ok {
		for _, e := range errs {
			tb.Errorf("%s %s: answer %d breaks the contract: %s: %s %v", req.Method, req.URL, a.status, e.Message, e.Reason, e.SchemaValidationErrors)
		}
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
	if ok, errs := v.ValidateHttpRequest(req); !ok {
		for _, e := range errs {
			tb.Errorf("%s %s: accepted a request that breaks the contract: %s: %s %v", req.Method, req.URL, e.Message, e.Reason, e.SchemaValidationErrors)
		}
	}
}

// TestDocumentMatchesRoutes holds the document to the routes, both ways.
func TestDocumentMatchesRoutes(t *testing.T) {
	doc, err := libopenapi.NewDocument([]byte(spec.OpenAPI()))
	if err != nil {
		t.Fatal(err)
	}
	model, err := doc.BuildV3Model()
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for path, item := range model.Model.Paths.PathItems.FromOldest() {
		for method := range item.GetOperations().FromOldest() {
			documented = append(documented, strings.ToUpper(method)+" "+path)
		}
	}
	routes := api.Routes()
	sort.Strings(routes)
	sort.Strings(documented)
	if diff := cmp.Diff(routes, documented); diff != "" {
		t.Errorf("routes and document differ (-routes +document):\n%s", diff)
	}
	v, err := contract()
	if err != nil {
		t.Fatal(err)
	}
	if ok, errs := v.ValidateDocument(); !ok {
		for _, e := range errs {
			t.Errorf("%s: %s %v", e.Message, e.Reason, e.SchemaValidationErrors)
		}
	}
}

// TestContractCanFail shows that the validation in these tests would notice.
func TestContractCanFail(t *testing.T) {
	v, err := contract()
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
		res := &http.Response{StatusCode: a.status, Header: a.header, Request: r, Body: io.NopCloser(strings.NewReader(a.body))}
		if ok, _ := v.ValidateHttpResponse(r, res); ok {
			t.Errorf("%s: a wrong answer passes", name)
		}
	}
}
