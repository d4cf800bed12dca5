package dashboard

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// spans returns the time ranges by name.
func spans() map[string]time.Duration {
	return map[string]time.Duration{"24h": 24 * time.Hour, "7d": 7 * 24 * time.Hour, "30d": 30 * 24 * time.Hour}
}

// Bounds of a list.
const (
	defaultLimit = 50
	maxLimit     = 200
	maxQuery     = 300 // bytes of a search
)

// query parses the parameters of a request's URL. Only the named ones are allowed, each once.
func query(r *http.Request, names ...string) (url.Values, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, errors.New("invalid query string")
	}
	for name, given := range values {
		switch {
		case len(names) == 0:
			return nil, fmt.Errorf("unknown parameter %.40q", name)
		case !slices.Contains(names, name):
			return nil, fmt.Errorf("unknown parameter %.40q; known: %s", name, strings.Join(names, ", "))
		case len(given) > 1:
			return nil, fmt.Errorf("repeated parameter %s", name)
		}
	}
	return values, nil
}

// view is a range and a mode.
type view struct {
	Range, Mode string
	span        time.Duration
	livemode    *bool
}

func parseView(values url.Values) (v view, err error) {
	v.Range, v.Mode = orDefault(values.Get("range"), "30d"), orDefault(values.Get("mode"), "all")
	var ok bool
	if v.span, ok = spans()[v.Range]; !ok {
		return v, errors.New("range must be 24h, 7d or 30d")
	}
	v.livemode, err = parseMode(v.Mode)
	return v, err
}

func parseMode(text string) (livemode *bool, err error) {
	switch text {
	case "all", "":
		return nil, nil
	case "live":
		return new(true), nil
	case "test":
		return new(false), nil
	}
	return nil, errors.New("mode must be live, test or all")
}

// parseFilter parses a list's filter, except the limit.
func parseFilter(values url.Values) (f report.Filter, err error) {
	if f.Query = strings.TrimSpace(values.Get("q")); len(f.Query) > maxQuery {
		return f, errors.New("q is too long to be an id or an e-mail address")
	}
	if f.Status, err = purchase.ParseStatus(values.Get("status")); err != nil {
		return f, err
	}
	if f.Livemode, err = parseMode(values.Get("mode")); err != nil {
		return f, err
	}
	if f.Code, err = parseCode(values.Get("code")); err != nil {
		return f, err
	}
	if text := values.Get("day"); text != "" {
		if f.Day, err = time.Parse(time.DateOnly, text); err != nil {
			return f, errors.New("day must be a UTC day like 2026-01-31")
		}
	}
	f.After, err = report.ParseCursor(values.Get("cursor"))
	return f, err
}

func parseCode(text string) (*int, error) {
	if text == "" {
		return nil, nil
	}
	code, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return nil, errors.New("code must be a whole number")
	}
	return new(int(code)), nil
}

func parseLimit(text string) (int, error) {
	if text == "" {
		return defaultLimit, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxLimit {
		return 0, fmt.Errorf("limit must be a number from 1 to %d", maxLimit)
	}
	return n, nil
}

// cut returns the first bytes of a text, up to limit and in whole characters.
func cut(s string, limit int) string {
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "")
	}
	return s
}

func orDefault(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
