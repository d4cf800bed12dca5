package dashboard

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// replayTimeout bounds a replay. Purchases replayed until then stay pending.
const replayTimeout = 25 * time.Second

func (d *Dashboard) apiReplayOne(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return badRequest(err)
	}
	return d.apiReplay(w, r, maintenance.Selection{ID: r.PathValue("id")})
}

func (d *Dashboard) apiReplayMany(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "status", "reason", "code", "since")
	if err != nil {
		return badRequest(err)
	}
	s, err := parseSelection(values)
	if err != nil {
		return badRequest(err)
	}
	return d.apiReplay(w, r, s)
}

// parseSelection parses a selection by status.
func parseSelection(values url.Values) (s maintenance.Selection, err error) {
	s.Status, s.Reason = purchase.Status(values.Get("status")), purchase.Reason(values.Get("reason"))
	if len(s.Reason) > 40 {
		return s, errors.New("invalid reason")
	}
	if s.Code, err = parseCode(values.Get("code")); err != nil {
		return s, err
	}
	if err = s.SetSince(values.Get("since")); err != nil {
		return s, fmt.Errorf("since: %w", err)
	}
	return s, nil
}

func (d *Dashboard) apiReplay(w http.ResponseWriter, r *http.Request, s maintenance.Selection) error {
	if err := s.Check(); err != nil {
		return badRequest(err)
	}
	n, err := d.replay(r, s)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusAccepted, map[string]int{"replayed": n})
	return nil
}

// replay makes purchases pending again and writes the audit log. Its error is an httpError.
func (d *Dashboard) replay(r *http.Request, s maintenance.Selection) (int, error) {
	ctx, cancel := context.WithTimeout(r.Context(), replayTimeout)
	defer cancel()
	n, err := d.Replays.Replay(ctx, s, func(int) {})
	if n > 0 {
		d.Wake()
	}
	fields := []zap.Field{
		zap.String("by", tokenName(r)), zap.String("remote", r.RemoteAddr),
		zap.String("path", logsafe.Text(r.URL.Path, 300)), zap.Strings("checkout_session_ids", s.SelectedIDs()),
		zap.String("status", string(s.Status)), zap.String("reason", string(s.Reason)),
		zap.Intp("code", s.Code), zap.Bool("no_code", s.NoCode), zap.Int("replayed", n), zap.Error(err),
	}
	if !s.Since.IsZero() {
		fields = append(fields, zap.Time("since", s.Since))
	}
	if s.Within > 0 {
		fields = append(fields, zap.Duration("within", s.Within))
	}
	d.Log.Info("Replay", fields...)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, report.ErrNotFound):
		return n, &httpError{http.StatusNotFound, report.ErrNotFound.Error()}
	case errors.Is(err, maintenance.ErrNotReplayable):
		return n, &httpError{http.StatusConflict, maintenance.ErrNotReplayable.Error()}
	case n > 0 && errors.Is(ctx.Err(), context.DeadlineExceeded):
		message := fmt.Sprintf("stopped after %s with %d replayed purchases; repeat for the rest", replayTimeout, n)
		return n, &httpError{http.StatusServiceUnavailable, message}
	default:
		message := fmt.Sprintf("ledger unavailable after %d replayed purchases", n)
		return n, &httpError{http.StatusServiceUnavailable, message}
	}
}
