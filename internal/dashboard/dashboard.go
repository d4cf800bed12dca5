// Package dashboard is what people and their tools look at: the API on the ledger, behind the admin token. It reads
// the ledger alone and never calls a worker.
package dashboard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/purchase"
)

// Ledger is what the API reads, and the one change that it makes. Implementations are safe for concurrent use and bounded in
// time by ctx. Replay makes purchases pending again and says how many; for one id its error is purchase.ErrUnknown or
// purchase.ErrNotReplayable.
type Ledger interface {
	Summary(ctx context.Context, since time.Time, livemode *bool) (purchase.Summary, error)
	Replay(ctx context.Context, s purchase.Selection, progress func(done int)) (int, error)
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
	wake   func()
	now    func() time.Time
	log    *zap.Logger
}

// New returns the API's handler, to be wrapped by an Access. wake is called when something was made pending.
func New(l Ledger, health func(ctx context.Context) Health, wake func(), now func() time.Time, log *zap.Logger) http.Handler {
	a := &API{ledger: l, health: health, wake: wake, now: now, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/summary", a.summary)
	mux.HandleFunc("POST /api/v1/replay", a.replayMany)
	mux.HandleFunc("POST /api/v1/purchases/{id}/replay", a.replayOne)
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

// replayTimeout bounds a replay of many; what was done until then stays done.
const replayTimeout = 25 * time.Second

func (a *API) replayOne(w http.ResponseWriter, r *http.Request) {
	a.replay(w, r, purchase.Selection{ID: r.PathValue("id")})
}

func (a *API) replayMany(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	s := purchase.Selection{Status: purchase.Status(q.Get("status")), Reason: purchase.Reason(q.Get("reason"))}
	if text := q.Get("code"); text != "" {
		code, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			fail(w, http.StatusBadRequest, "code is a whole number")
			return
		}
		s.Code = new(int(code))
	}
	var err error
	if s.Since, err = purchase.ParseSince(q.Get("since"), a.now()); err != nil {
		fail(w, http.StatusBadRequest, "since: "+err.Error())
		return
	}
	a.replay(w, r, s)
}

func (a *API) replay(w http.ResponseWriter, r *http.Request, s purchase.Selection) {
	if err := s.Check(); err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), replayTimeout)
	defer cancel()
	n, err := a.ledger.Replay(ctx, s, func(int) {})
	if n > 0 {
		a.wake()
	}
	user, _, _ := r.BasicAuth()
	a.log.Info("Replay", zap.String("user", user), zap.String("remote", r.RemoteAddr), zap.String("checkout_session_id", s.ID),
		zap.String("status", string(s.Status)), zap.String("reason", string(s.Reason)), zap.Int("replayed", n), zap.Error(err))
	switch {
	case errors.Is(err, purchase.ErrUnknown):
		fail(w, http.StatusNotFound, purchase.ErrUnknown.Error())
	case errors.Is(err, purchase.ErrNotReplayable):
		fail(w, http.StatusConflict, purchase.ErrNotReplayable.Error())
	case err != nil:
		fail(w, http.StatusServiceUnavailable, fmt.Sprintf("%d were replayed, then the ledger was not available", n))
	default:
		reply(w, http.StatusAccepted, map[string]int{"replayed": n})
	}
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
