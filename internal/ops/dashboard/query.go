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

// filterNames returns the parameters that filter a list.
func filterNames() []string {
	return []string{
		"q", "status", "mode", "reason", "kind", "code", "sales", "buyer", "day", "range", "from", "to",
	}
}

// parseFilter parses a list's filter, except the limit. Several parameters select what fits all of them.
func (d *Dashboard) parseFilter(values url.Values) (f report.Filter, err error) {
	if f.Query = strings.TrimSpace(values.Get("q")); len(f.Query) > maxQuery {
		return f, errors.New("q is too long to be an id or an e-mail address")
	}
	if f.Statuses, err = parseList(values.Get("status"), purchase.ParseStatus); err != nil {
		return f, err
	}
	if f.Livemode, err = parseMode(values.Get("mode")); err != nil {
		return f, err
	}
	if f.Reasons, err = parseList(values.Get("reason"), parseReason); err != nil {
		return f, err
	}
	if f.Kinds, err = parseList(values.Get("kind"), parseKind); err != nil {
		return f, err
	}
	if f.NoCode = values.Get("code") == noCode; !f.NoCode {
		if f.Code, err = parseCode(values.Get("code")); err != nil {
			return f, err
		}
	}
	if err = parseSales(values, &f); err != nil {
		return f, err
	}
	if err = d.parseTime(values, &f); err != nil {
		return f, err
	}
	f.After, err = report.ParseCursor(values.Get("cursor"))
	return f, err
}

// parseList parses values that are separated by commas; "" is nil.
func parseList[T any](text string, parse func(string) (T, error)) (list []T, err error) {
	if text == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			return nil, errors.New("empty value in a list")
		}
		value, err := parse(part)
		if err != nil {
			return nil, err
		}
		list = append(list, value)
	}
	return list, nil
}

func parseReason(text string) (purchase.Reason, error) {
	if len(text) > 40 {
		return "", errors.New("invalid reason")
	}
	return purchase.Reason(text), nil
}

func parseKind(text string) (purchase.Kind, error) {
	switch kind := purchase.Kind(text); kind {
	case purchase.KindCheckout, purchase.KindTrial, purchase.KindFirstPayment:
		return kind, nil
	}
	return "", errors.New("kind must be checkout, trial or first_payment")
}

// parseSales parses sales and buyer, which select paid purchases only.
func parseSales(values url.Values, f *report.Filter) error {
	switch sales := values.Get("sales"); {
	case sales == "":
	case sales == "all":
		f.Sales("")
	case slices.Contains(purchase.SaleStates(), purchase.SaleState(sales)):
		f.Sales(purchase.SaleState(sales))
	default:
		return errors.New("sales must be all, accepted, waiting, not_accepted or left_out")
	}
	switch buyer := values.Get("buyer"); buyer {
	case "":
	case "new", "returning":
		f.Buyers(buyer == "new")
	default:
		return errors.New("buyer must be new or returning")
	}
	return nil
}

// parseTime parses day, range, from and to.
func (d *Dashboard) parseTime(values url.Values, f *report.Filter) error {
	if values.Get("range") != "" || values.Get("from") != "" || values.Get("to") != "" {
		v, err := parseView(values, "all", d.Now(), d.days)
		if err != nil {
			return err
		}
		f.Between(v.period.From, v.period.Until)
	}
	if text := values.Get("day"); text != "" {
		day, err := time.Parse(time.DateOnly, text)
		if err != nil {
			return errors.New("day must be a day like 2026-01-31")
		}
		f.Between(d.days.Start(day), d.days.Start(day.AddDate(0, 0, 1)))
	}
	return nil
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
