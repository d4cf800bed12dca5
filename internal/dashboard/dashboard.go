// Package dashboard is what people and their tools look at: the API on the ledger, behind the admin token. It reads
// the ledger alone and never calls a worker.
package dashboard

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/purchase"
)

// Ledger is what the pages read. Implementations are safe for concurrent use and bounded in time by ctx.
type Ledger interface {
	Summary(ctx context.Context, since time.Time, livemode *bool) (purchase.Summary, error)
}

// Health is the strip of lights: the neighbours' states in one word each, and the workers heard of lately (any
// JSON value that is a list).
type Health struct {
	Postgres string `json:"postgres"`
	NATS     string `json:"nats"`
	Workers  any    `json:"workers"`
}

// API answers /api/v1.
type API struct {
	ledger Ledger
	health func(ctx context.Context) Health
	now    func() time.Time
	log    *zap.Logger
}

// New returns the API's handler, to be wrapped by an Access.
func New(l Ledger, health func(ctx context.Context) Health, now func() time.Time, log *zap.Logger) http.Handler {
	a := &API{ledger: l, health: health, now: now, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/summary", a.summary)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fail(w, http.StatusNotFound, "there is nothing here; try /api/v1/summary")
	})
	return mux
}

// ranges are the spans of time that can be asked for.
var ranges = map[string]time.Duration{"24h": 24 * time.Hour, "7d": 7 * 24 * time.Hour, "30d": 30 * 24 * time.Hour}

// summary is the body of GET /api/v1/summary.
type summary struct {
	Range     string                  `json:"range"`
	Mode      string                  `json:"mode"`
	Purchases map[purchase.Status]int `json:"purchases"`
	Attention int                     `json:"attention"`
	Oldest    int64                   `json:"oldest_waiting_seconds"`
	Value     []purchase.Value        `json:"value"`
	Health    Health                  `json:"health"`
}

func (a *API) summary(w http.ResponseWriter, r *http.Request) {
	body := summary{Range: orDefault(r.FormValue("range"), "30d"), Mode: orDefault(r.FormValue("mode"), "all"), Value: []purchase.Value{}}
	span, ok := ranges[body.Range]
	if !ok {
		fail(w, http.StatusBadRequest, "range is one of 24h, 7d, 30d")
		return
	}
	var livemode *bool
	switch body.Mode {
	case "all":
	case "live", "test":
		live := body.Mode == "live"
		livemode = &live
	default:
		fail(w, http.StatusBadRequest, "mode is one of live, test, all")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	now := a.now()
	s, err := a.ledger.Summary(ctx, now.Add(-span), livemode)
	if err != nil {
		a.log.Warn("The summary could not be read", zap.Error(err))
		fail(w, http.StatusServiceUnavailable, "the ledger is not available")
		return
	}
	body.Purchases = make(map[purchase.Status]int)
	for _, status := range purchase.Statuses() {
		body.Purchases[status] = s.Counts[status]
	}
	body.Attention = s.Attention
	if !s.Oldest.IsZero() {
		body.Oldest = max(0, int64(now.Sub(s.Oldest).Seconds()))
	}
	if s.Values != nil {
		body.Value = s.Values
	}
	body.Health = a.health(ctx)
	reply(w, http.StatusOK, body)
}

func orDefault(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the reader is gone
}

func fail(w http.ResponseWriter, status int, sentence string) {
	reply(w, status, map[string]string{"error": sentence})
}
