// Package dashboard is what people and their tools look at: the pages and the API on the ledger, behind the
// admin token. It reads the ledger and the neighbours' health alone and never calls a worker. The one change
// that it makes is a replay: rows made pending again.
//
// Pages work without JavaScript; with it the charts are drawn, times are the viewer's and what is shown stays
// fresh. Figures come from the ledger's rollup and are exact at the moment of asking.
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
// bounded in time by ctx.
type Reports interface {
	Groups
	// Summary counts since the beginning of the hour of a time; its cost does not grow with the ledger.
	Summary(ctx context.Context, since time.Time, livemode *bool) (report.Summary, error)
	// Coverage counts match keys by the day of UTC since the beginning of a day.
	Coverage(ctx context.Context, since time.Time, livemode *bool) ([]report.DayCoverage, error)
	// List returns at most f.Limit rows from the newest to the oldest.
	List(ctx context.Context, f report.Filter) ([]report.Row, error)
	// Get returns one row with everything about it; the error is report.ErrNotFound where there is none.
	Get(ctx context.Context, id string) (report.Row, error)
	// ProfileByEmail returns a profile's id, "" where there is none. Its errors do not repeat the address.
	ProfileByEmail(ctx context.Context, email string) (string, error)
	// Backfilled counts the purchases paid since a time whose webhook was missed, and returns when the last
	// one was recorded.
	Backfilled(ctx context.Context, since time.Time, livemode *bool) (n int, last time.Time, err error)
	// Reconciliation returns the latest of a mode; its Made is zero where there was none.
	Reconciliation(ctx context.Context, livemode bool) (report.Reconciliation, error)
}

// Groups counts the purchases of all times.
type Groups interface {
	Groups(ctx context.Context, livemode *bool) ([]report.Group, error)
}

// Replays makes purchases pending again.
type Replays interface {
	CountReplayable(ctx context.Context, s maintenance.Selection) ([]maintenance.Replayable, error)
	// Replay returns how many it made pending; for one id its error is report.ErrNotFound or
	// maintenance.ErrNotReplayable.
	Replay(ctx context.Context, s maintenance.Selection, progress func(done int)) (int, error)
}

// Health is the strip of lights: the neighbours' states in one word each, and the workers heard of lately.
type Health struct {
	Postgres string                `json:"postgres"` // up or down
	NATS     string                `json:"nats"`     // up or down
	Workers  []message.WorkerState `json:"workers"`
	Backlog  *Backlog              `json:"-"` // nil: the queue does not say
}

// Backlog is what the queue holds for the workers.
type Backlog struct {
	Waiting uint64 // to be fetched
	Taken   uint64 // being worked on, or delayed until their next attempt
}

// Renderer makes the request's body of a stored message: of a delivered purchase the one that was sent, else,
// with sent nil, the one that is to be sent, as far as ingest knows it.
type Renderer func(envelope []byte, sent *purchase.Sent) ([]byte, error)

// Config is what the dashboard is made of.
type Config struct {
	Reports Reports
	Replays Replays
	Health  func(ctx context.Context) Health
	Wake    func() // called when something was made pending
	Body    Renderer
	Version string
	Now     func() time.Time
	Log     *zap.Logger
}

// Dashboard answers the pages and /api/v1.
type Dashboard struct {
	Config
	pages  *pages
	static http.Handler
}

// New returns the dashboard's handler, to be wrapped by an Access.
func New(c Config) http.Handler {
	assets := newAssets()
	d := &Dashboard{Config: c, pages: newPages(assets), static: assets}
	mux := http.NewServeMux()
	for pattern, handle := range map[string]handler{
		"GET /{$}":                   d.overview,
		"GET /purchases":             d.purchases,
		"GET /purchases/{id}":        d.purchase,
		"GET /dead":                  d.dead,
		"GET /attention":             d.attention,
		"GET /reconciliation":        d.reconciliation,
		"GET /reconciliation.csv":    d.reconciliationCSV,
		"POST /search":               d.search,
		"POST /confirm":              d.confirm,
		"GET /api/v1/summary":        d.apiSummary,
		"GET /api/v1/purchases":      d.apiPurchases,
		"GET /api/v1/purchases/{id}": d.apiPurchase,
	} {
		mux.HandleFunc(pattern, d.answer(bounded(handle)))
	}
	// These take their own time: a list as long as the ledger, and many purchases to replay.
	mux.HandleFunc("GET /purchases.csv", d.answer(d.csv))
	mux.HandleFunc("POST /replay", d.answer(d.replayFromPage))
	mux.HandleFunc("POST /api/v1/purchases/{id}/replay", d.answer(d.apiReplayOne))
	mux.HandleFunc("POST /api/v1/replay", d.answer(d.apiReplayMany))
	mux.HandleFunc("GET /api/v1/openapi.json", d.apiDescription)
	mux.Handle("GET /static/", d.static)
	return d.guard(mux)
}

// handler answers a request. An error that is no refusal is the ledger's.
type handler func(w http.ResponseWriter, r *http.Request) error

// refusal is an error that is answered with its status and sentence.
type refusal struct {
	status   int
	sentence string
}

func (r *refusal) Error() string { return r.sentence }

func badRequest(err error) error { return &refusal{http.StatusBadRequest, err.Error()} }

// answer turns a handler's error into its answer: a page for people, JSON for the API.
func (d *Dashboard) answer(handle handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := handle(w, r)
		var refused *refusal
		switch {
		case err == nil:
		case errors.As(err, &refused):
			d.refuse(w, r, refused.status, refused.sentence)
		default:
			d.unavailable(w, r, err)
		}
	}
}

// queryTimeout bounds what one answer may ask of the ledger.
const queryTimeout = 10 * time.Second

func bounded(handle handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), queryTimeout)
		defer cancel()
		return handle(w, r.WithContext(ctx))
	}
}

// guard answers what the mux would answer in its own words, in ours, and survives a panic.
func (d *Dashboard) guard(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			fault := recover()
			if fault == http.ErrAbortHandler { //nolint:errorlint // as net/http compares it
				panic(fault)
			}
			if fault != nil {
				d.Log.Error("A page panicked", zap.String("path", logsafe.Text(r.URL.Path, 300)), zap.String("panic", fmt.Sprintf("%T", fault)), zap.Stack("stack"))
				d.refuse(w, r, http.StatusInternalServerError, "something is wrong on our side; the log says what")
			}
		}()
		if _, pattern := mux.Handler(r); pattern == "" {
			d.unrouted(mux, w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// unrouted tells a wrong method from a wrong path.
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
			d.refuse(w, r, http.StatusMethodNotAllowed, "this address answers "+allow+" alone")
			return
		}
	}
	d.refuse(w, r, http.StatusNotFound, "there is nothing at this address")
}

// refuse answers with an error: a page for people, JSON for the API.
func (d *Dashboard) refuse(w http.ResponseWriter, r *http.Request, status int, sentence string) {
	if wantsPage(r) {
		d.pages.problem(w, r, status, sentence)
		return
	}
	fail(w, status, sentence)
}

// unavailable says that the ledger did not answer; the reason goes to the log, not to the reader.
func (d *Dashboard) unavailable(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // nobody waits any more
	}
	d.Log.Warn("The ledger could not be read", zap.String("path", logsafe.Text(r.URL.Path, 300)), zap.Error(err))
	w.Header().Set("Retry-After", "5")
	d.refuse(w, r, http.StatusServiceUnavailable, "the ledger is not available, or took too long: webhooks go on as soon as it is back; try again, or narrow the question")
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the reader is gone
}

func fail(w http.ResponseWriter, status int, sentence string) {
	reply(w, status, map[string]string{"error": sentence})
}
