// Package dashboard serves the pages and the API behind the admin token. It reads the ledger and the health
// of Postgres, NATS and the workers. Its only change is a replay, which makes purchases pending.
//
// Pages work without JavaScript, which adds charts and live updates. Days and times are those
// of one zone. Totals come from the rollup and are exact at the time of the request.
package dashboard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// Reports reads the ledger; livemode nil means both modes. Implementations are safe for concurrent use and
// stop with ctx.
type Reports interface {
	Groups
	Counts
	// Summary returns the totals of a period. Its cost does not grow with the ledger.
	Summary(ctx context.Context, p report.Period, livemode *bool) (report.Summary, error)
	// Coverage counts match keys by the steps of a period.
	Coverage(ctx context.Context, p report.Period, livemode *bool) ([]report.DayCoverage, error)
	// List returns up to f.Limit rows, newest first.
	List(ctx context.Context, f report.Filter) ([]report.Row, error)
	// Get returns a row with its details. The error is report.ErrNotFound if there is none.
	Get(ctx context.Context, id string) (report.Row, error)
	// ProfileByEmail returns a profile's id; "": none. Its errors do not contain the address.
	ProfileByEmail(ctx context.Context, email string) (string, error)
	// Backfilled counts the purchases paid in a period whose webhook was missed, and returns when the last one
	// was recorded.
	Backfilled(ctx context.Context, from, until time.Time, livemode *bool) (n int, last time.Time, err error)
	// Reconciliation returns the latest one of a mode; Made is zero if there is none.
	Reconciliation(ctx context.Context, livemode bool) (report.Reconciliation, error)
}

// Groups counts all purchases by status, reason and code.
type Groups interface {
	Groups(ctx context.Context, livemode *bool) ([]report.Group, error)
}

// Replays makes purchases pending again.
type Replays interface {
	CountReplayable(ctx context.Context, s maintenance.Selection) ([]maintenance.Replayable, error)
	// Replay returns how many it made pending. With Selection.ID the error is report.ErrNotFound or
	// maintenance.ErrNotReplayable if none.
	Replay(ctx context.Context, s maintenance.Selection, progress func(done int)) (int, error)
}

// Health is the state of Postgres, NATS and the workers that reported lately.
type Health struct {
	Postgres string                `json:"postgres"` // up or down
	NATS     string                `json:"nats"`     // up or down
	Workers  []message.WorkerState `json:"workers"`
	Backlog  *Backlog              `json:"-"` // nil: unknown
}

// Backlog counts the messages of the workers' consumer.
type Backlog struct {
	Waiting uint64 // not delivered to a worker yet
	Taken   uint64 // in progress, or delayed until the next attempt
}

// Renderer renders the request body of a stored message: with sent as it was delivered; with nil as it will
// be sent, as far as ingest knows the worker's settings.
type Renderer func(envelope []byte, sent *purchase.Sent) ([]byte, error)

// Config configures the dashboard.
type Config struct {
	Reports  Reports
	Replays  Replays
	Health   func(ctx context.Context) Health
	Problems func(ctx context.Context) report.Problems
	Wake     func() // called when purchases were made pending
	Body     Renderer
	Version  string
	Zone     *time.Location // of days and times; nil: UTC

	CountNames report.EventNames // of purchases in TikTok's counts

	Now func() time.Time
	Log *zap.Logger
}

// Dashboard serves the pages and /api/v1.
type Dashboard struct {
	Config
	days   report.Days
	pages  *pages
	static http.Handler
}

// New returns the dashboard's handler, without access control: see NewAccess.
func New(c Config) http.Handler {
	assets := newAssets()
	if c.Zone == nil {
		c.Zone = time.UTC
	}
	d := &Dashboard{
		Config: c, days: report.Days{Zone: c.Zone}, pages: newPages(assets, c.Zone), static: assets,
	}
	mux := http.NewServeMux()
	for pattern, handle := range map[string]handler{
		"GET /{$}":                   d.overview,
		"GET /purchases":             d.purchases,
		"GET /purchases/{id}":        d.purchase,
		"GET /dead":                  d.dead,
		"GET /attention":             d.attention,
		"GET /reconciliation":        d.reconciliation,
		"GET /reconciliation.csv":    d.reconciliationCSV,
		"GET /counts.csv":            d.countsCSV,
		"POST /search":               d.search,
		"POST /confirm":              d.confirm,
		"GET /api/v1/summary":        d.apiSummary,
		"GET /api/v1/problems":       d.apiProblems,
		"GET /api/v1/counts":         d.apiCounts,
		"GET /api/v1/purchases":      d.apiPurchases,
		"GET /api/v1/purchases/{id}": d.apiPurchase,
	} {
		mux.HandleFunc(pattern, d.answer(bounded(handle)))
	}
	// These bound their time themselves: exports and replays may be long.
	mux.HandleFunc("GET /purchases.csv", d.answer(d.csv))
	mux.HandleFunc("POST /replay", d.answer(d.replayFromPage))
	mux.HandleFunc("POST /api/v1/purchases/{id}/replay", d.answer(d.apiReplayOne))
	mux.HandleFunc("POST /api/v1/replay", d.answer(d.apiReplayMany))
	mux.HandleFunc("GET /api/v1/openapi.json", d.apiDescription)
	mux.Handle("GET /static/", d.static)
	return d.guard(mux)
}

// handler serves a request. An error other than httpError comes from the ledger.
type handler func(w http.ResponseWriter, r *http.Request) error

// httpError is an error with the status and the message of its response.
type httpError struct {
	status  int
	message string
}

func (e *httpError) Error() string { return e.message }

func badRequest(err error) error { return &httpError{http.StatusBadRequest, err.Error()} }

// answer writes a handler's error as its response.
func (d *Dashboard) answer(handle handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := handle(w, r)
		var known *httpError
		switch {
		case err == nil:
		case errors.As(err, &known):
			d.writeError(w, r, known.status, known.message)
		default:
			d.unavailable(w, r, err)
		}
	}
}

// queryTimeout bounds the ledger's queries of one response.
const queryTimeout = 10 * time.Second

func bounded(handle handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), queryTimeout)
		defer cancel()
		inner := r.WithContext(ctx)
		err := handle(w, inner)
		r.PostForm = inner.PostForm // for the page of an error
		return err
	}
}

const internalError = "internal error; see the log"

// guard recovers from panics and serves the mux's 404 and 405 in the dashboard's format.
func (d *Dashboard) guard(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			value := recover()
			if value == http.ErrAbortHandler { //nolint:errorlint // as net/http compares it
				panic(value)
			}
			if value != nil {
				d.Log.Error("Dashboard request panicked", zap.String("path", logsafe.Text(r.URL.Path, 300)),
					zap.String("panic", fmt.Sprintf("%T", value)), zap.Stack("stack"))
				d.writeError(w, r, http.StatusInternalServerError, internalError)
			}
		}()
		if _, pattern := mux.Handler(r); pattern == "" {
			d.unrouted(mux, w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// unrouted answers 405 if the path exists with another method, else 404.
func (d *Dashboard) unrouted(mux *http.ServeMux, w http.ResponseWriter, r *http.Request) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		other := r.Clone(r.Context())
		other.Method = method
		if _, pattern := mux.Handler(other); pattern != "" && method != r.Method {
			allow := method
			if method == http.MethodGet {
				allow = "GET, HEAD"
			}
			w.Header().Set("Allow", allow)
			d.writeError(w, r, http.StatusMethodNotAllowed, "method not allowed; use "+allow)
			return
		}
	}
	d.writeError(w, r, http.StatusNotFound, "page not found")
}

// writeError writes an error as a page, or as JSON for the API. The page of an unavailable ledger has the
// problems, which may be its cause.
func (d *Dashboard) writeError(w http.ResponseWriter, r *http.Request, status int, message string) {
	if !wantsPage(r) {
		writeJSONError(w, status, message)
		return
	}
	f := frame{Version: d.Version, Now: d.Now()}
	if status < http.StatusInternalServerError { // else the ledger may be the cause
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		_ = d.countGroups(ctx, &f) // the page does without the counts
	}
	if status == http.StatusServiceUnavailable {
		f.Problems = problemViews(d.Problems(r.Context()))
	}
	d.pages.renderError(w, r, status, message, f)
}

// unavailable answers a request whose ledger query failed. The cause is logged, not shown.
func (d *Dashboard) unavailable(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // the client is gone
	}
	d.Log.Warn("Ledger query failed", zap.String("path", logsafe.Text(r.URL.Path, 300)), zap.Error(err))
	w.Header().Set("Retry-After", "5")
	d.writeError(w, r, http.StatusServiceUnavailable,
		"the ledger is unavailable or too slow; try again, or choose a smaller range")
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client is gone
}

func writeJSONError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, map[string]string{"error": message})
}
