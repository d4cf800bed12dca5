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

// replayTimeout bounds a replay of many; what was done until then stays done.
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

// parseSelection reads which purchases of a status a replay is about.
func parseSelection(values url.Values) (s maintenance.Selection, err error) {
	s.Status, s.Reason = purchase.Status(values.Get("status")), purchase.Reason(values.Get("reason"))
	if len(s.Reason) > 40 {
		return s, errors.New("there is no such reason")
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
	reply(w, http.StatusAccepted, map[string]int{"replayed": n})
	return nil
}

// replay makes purchases pending again and logs by whose token, which and how many. Its error is a refusal.
func (d *Dashboard) replay(r *http.Request, s maintenance.Selection) (int, error) {
	ctx, cancel := context.WithTimeout(r.Context(), replayTimeout)
	defer cancel()
	n, err := d.Replays.Replay(ctx, s, func(int) {})
	if n > 0 {
		d.Wake()
	}
	fields := []zap.Field{
		zap.String("by", heldBy(r)), zap.String("remote", r.RemoteAddr), zap.String("path", logsafe.Text(r.URL.Path, 300)), zap.Strings("checkout_session_ids", s.SelectedIDs()),
		zap.String("status", string(s.Status)), zap.String("reason", string(s.Reason)), zap.Intp("code", s.Code), zap.Int("replayed", n), zap.Error(err),
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
		return n, &refusal{http.StatusNotFound, report.ErrNotFound.Error()}
	case errors.Is(err, maintenance.ErrNotReplayable):
		return n, &refusal{http.StatusConflict, maintenance.ErrNotReplayable.Error()}
	default:
		sentence := fmt.Sprintf("%d were replayed, then the ledger was not available", n)
		return n, &refusal{http.StatusServiceUnavailable, sentence}
	}
}
