package dashboard_test

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/service"
)

// Every path, method and status of the description is returned by the API, and no other.
func TestOpenAPI_MatchesTheAPI(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	document, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := document.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	answered := map[string]map[string]bool{} // path and method → statuses seen
	ask := func(h http.Handler, method, target, path string) *httptest.ResponseRecorder {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), method, target, http.NoBody)
		r.Host = "127.0.0.1:8081"
		r.Header.Set("Authorization", "Bearer token")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		operation := document.Paths.Find(path).GetOperation(method)
		err := openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
			RequestValidationInput: &openapi3filter.RequestValidationInput{
				Request: r, Route: &routers.Route{Spec: document, Operation: operation},
			},
			Status: w.Code, Header: w.Header(), Body: io.NopCloser(bytes.NewReader(w.Body.Bytes())),
			Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
		})
		if err != nil {
			t.Errorf("%s %s returned %d: %v", method, target, w.Code, err)
		}
		key := strings.ToLower(method) + " " + path
		if answered[key] == nil {
			answered[key] = map[string]bool{}
		}
		answered[key][http.StatusText(w.Code)] = true
		return w
	}
	const list, id = "/api/v1/purchases", "/api/v1/purchases/{id}"
	const one, many = id + "/replay", "/api/v1/replay"
	l := newLedger()
	h := newAPI(l)
	for _, query := range []string{"", "?range=24h&mode=live", "?range=7d&mode=test", "?range=1y"} {
		ask(h, http.MethodGet, "/api/v1/summary"+query, "/api/v1/summary")
	}
	for _, query := range []string{"", "?mode=live"} {
		ask(h, http.MethodGet, "/api/v1/problems"+query, "/api/v1/problems")
	}
	l.refused = &message.StatsProblem{Kind: "access", Reason: "40001 no scope", Since: now}
	l.counts = weekOfCounts()
	for _, query := range []string{"", "?x=1"} {
		ask(h, http.MethodGet, "/api/v1/counts"+query, "/api/v1/counts")
		ask(h, http.MethodGet, "/api/v1/summary", "/api/v1/summary")
		l.refused = nil
	}
	for _, query := range []string{
		"", "?limit=1", "?status=dead&mode=all&code=40002&day=2026-01-02&limit=200&q=cs_dead", "?limit=1000",
		"?cursor=x",
	} {
		ask(h, http.MethodGet, list+query, list)
	}
	for _, path := range []string{"cs_dead", "cs_unknown", "cs_new?x=1"} {
		ask(h, http.MethodGet, list+"/"+path, id)
	}
	for _, path := range []string{"cs_dead", "cs_unknown", "cs_trial", "cs.1"} {
		ask(h, http.MethodPost, list+"/"+path+"/replay", one)
	}
	for _, query := range []string{
		"?status=dead", "?status=dead&reason=refused&code=40002&since=72h", "?status=delivered",
	} {
		ask(h, http.MethodPost, many+query, many)
	}
	ask(h, http.MethodGet, "/api/v1/openapi.json", "/api/v1/openapi.json")
	hosts, err := service.ParseHosts(nil, "127.0.0.1:8081")
	if err != nil {
		t.Fatal(err)
	}
	refused := (&tally{}).add
	another := dashboard.NewAccess(tokens(t, "another", ""), newAPI(newLedger()), refused, zap.NewNop())
	for _, stranger := range []http.Handler{
		another, hosts.Guard(newAPI(newLedger()), refused, zap.NewNop()), exhausted(t),
	} {
		for _, target := range [][3]string{
			{"GET", "/api/v1/summary", "/api/v1/summary"},
			{"GET", "/api/v1/problems", "/api/v1/problems"},
			{"GET", "/api/v1/counts", "/api/v1/counts"},
			{"GET", list, list},
			{"GET", list + "/cs_dead", id},
			{"POST", list + "/cs_dead/replay", one},
			{"POST", many + "?status=dead", many},
			{"GET", "/api/v1/openapi.json", "/api/v1/openapi.json"},
		} {
			ask(renamed(stranger), target[0], target[1], target[2])
		}
	}
	l.err = errors.New("connection refused")
	for _, target := range [][3]string{
		{"GET", "/api/v1/summary", "/api/v1/summary"},
		{"GET", "/api/v1/problems", "/api/v1/problems"},
		{"GET", "/api/v1/counts", "/api/v1/counts"},
		{"GET", list, list},
		{"GET", list + "/cs_dead", id},
		{"POST", list + "/cs_dead/replay", one},
		{"POST", many + "?status=dead", many},
	} {
		ask(h, target[0], target[1], target[2])
	}

	described := 0
	for path, item := range document.Paths.Map() {
		for method, operation := range item.Operations() {
			described++
			for code := range operation.Responses.Map() {
				status, err := strconv.Atoi(code)
				if err != nil {
					t.Fatal(err)
				}
				if !answered[strings.ToLower(method)+" "+path][http.StatusText(status)] {
					t.Errorf("%s %s: status %s was never returned", method, path, code)
				}
			}
		}
	}
	if described != len(answered) {
		t.Errorf("%d operations described, %d tested: %v", described, len(answered),
			slices.Sorted(maps.Keys(answered)))
	}
}

// exhausted returns a handler that answers 429.
func exhausted(t *testing.T) http.Handler {
	t.Helper()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		synctest.Test(t, func(t *testing.T) {
			h := dashboard.NewAccess(tokens(t, "another", ""), newAPI(newLedger()), (&tally{}).add, zap.NewNop())
			var group sync.WaitGroup
			var once sync.Once
			for range 30 {
				group.Go(func() {
					last, copied := httptest.NewRecorder(), r.Clone(t.Context())
					copied.RemoteAddr = "192.0.2.99:1"
					if h.ServeHTTP(last, copied); last.Code == http.StatusTooManyRequests {
						once.Do(func() {
							maps.Copy(w.Header(), last.Header())
							w.WriteHeader(last.Code)
							_, _ = w.Write(last.Body.Bytes())
						})
					}
				})
			}
			group.Wait()
		})
	})
}

// renamed sets a Host that is no loopback name.
func renamed(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Host = "relay.example"
		h.ServeHTTP(w, r)
	})
}
