package tiktok

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

// StatsConfig holds the settings of Stats.
type StatsConfig struct {
	URL          string // absolute address of pixel/event/stats
	AdvertiserID string
	PixelID      string
	EventName    string           // of a purchase, as it is sent
	Timeout      time.Duration    // for one whole request, above 0
	Client       *http.Client     // nil: a new one; its redirect policy is replaced
	Now          func() time.Time // the clock, for a Retry-After that is a date
}

// Stats reads how many events TikTok counts for a pixel. It follows the official SDK's description of
// pixel/event/stats and has not been tried against TikTok. It shares neither connections nor limits with a
// Pixel. It is safe for concurrent use.
type Stats struct {
	config StatsConfig
	token  atomic.Pointer[secret.String]
	client *http.Client
}

// NewStats returns a client for a token with the measurement scope.
func NewStats(c StatsConfig, token secret.String) *Stats {
	s := &Stats{config: c, client: newClient(c.Client, c.Timeout)}
	s.SetToken(token)
	return s
}

// SetToken replaces the token of later requests.
func (s *Stats) SetToken(token secret.String) { s.token.Store(&token) }

// Day returns the counts of a UTC day, by event type; with ClassDelivered never empty: if TikTok lists
// nothing, the purchase's event has a count of 0. Otherwise the answer has the cause.
func (s *Stats) Day(ctx context.Context, day time.Time) ([]message.Count, purchase.Answer) {
	token := *s.token.Load()
	failed := func(class purchase.Class, message string) ([]message.Count, purchase.Answer) {
		return nil, purchase.Answer{Class: class, Known: true, Message: sanitize(message, token, maxMessage)}
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	target, err := s.target(day)
	if err != nil {
		return failed(purchase.ClassAccess, "invalid TIKTOK_STATS_URL")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return failed(purchase.ClassAccess, "invalid TIKTOK_STATS_URL")
	}
	if !headerValue.MatchString(token.Reveal()) {
		return failed(purchase.ClassAccess, "access token contains invalid characters")
	}
	req.Header.Set("Access-Token", token.Reveal())
	req.Header.Set("User-Agent", "purchase-relay")
	resp, err := s.client.Do(req)
	defer s.client.CloseIdleConnections() // the next round is an hour away
	if err != nil {
		return failed(purchase.ClassRetry, "no answer: "+errorText(err))
	}
	defer func() { _ = resp.Body.Close() }()
	a, body := readAnswer(resp)
	a.Message, a.RequestID = sanitize(a.Message, token, maxMessage), sanitize(a.RequestID, token, maxRequestID)
	a.RetryAfter = RetryAfter(resp.Header.Get("Retry-After"), s.config.Now())
	if a.Class != purchase.ClassDelivered {
		return nil, a
	}
	counts, err := parseStats(body, s.config.PixelID)
	if err != nil {
		a.Class, a.Message = purchase.ClassRetry, "malformed counts: "+err.Error()
		return nil, a
	}
	if len(counts) == 0 {
		counts = []message.Count{{Event: s.config.EventName}}
	}
	return counts, a
}

// target returns the URL for one day.
func (s *Stats) target(day time.Time) (string, error) {
	u, err := url.Parse(s.config.URL)
	if err != nil {
		return "", err
	}
	date := day.UTC().Format(time.DateOnly)
	pixels, err := json.Marshal([]string{s.config.PixelID})
	if err != nil {
		return "", err
	}
	query := u.Query()
	query.Set("advertiser_id", s.config.AdvertiserID)
	query.Set("pixel_ids", string(pixels))
	query.Set("date_range", `{"start_date":"`+date+`","end_date":"`+date+`"}`)
	u.RawQuery = query.Encode()
	return u.String(), nil
}

type pixelStatistics struct {
	PixelID    string      `json:"pixel_id"`
	Statistics []statistic `json:"statistics"`
}

// statistic is an entry of the answer. A type of the pixel's own has custom_event_type.
type statistic struct {
	PixelEvent  string `json:"pixel_event_type"`
	CustomEvent string `json:"custom_event_type"`
	Total       *int64 `json:"total_count"`
	Browser     int64  `json:"browser_event_total_count"`
	Server      int64  `json:"server_event_total_count"`
	Attributed  int64  `json:"attributed_count"`
}

// parseStats returns a pixel's counts, largest first, at most as many as a message holds. An answer in
// another shape is an error: it must not be read as counts of 0. A single entry is the requested pixel's
// under any id: TikTok has a code (of Events Manager) and an internal id for each.
func parseStats(body []byte, pixel string) ([]message.Count, error) {
	var answer struct {
		Data *struct {
			List *[]pixelStatistics `json:"list"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, errors.New("a field has the wrong type")
	}
	if answer.Data == nil || answer.Data.List == nil {
		return nil, errors.New("data.list is missing")
	}
	list := *answer.Data.List
	if len(list) > 1 {
		list = slices.DeleteFunc(list, func(p pixelStatistics) bool { return p.PixelID != pixel })
		if len(list) == 0 {
			return nil, errors.New("data.list has several other pixels")
		}
	}
	byEvent := make(map[string]*message.Count)
	for _, p := range list {
		for _, s := range p.Statistics {
			name := logsafe.Text(cmp.Or(s.PixelEvent, s.CustomEvent), message.MaxEventType-1) // and an ellipsis
			switch {
			case name == "":
				return nil, errors.New("an event type is missing")
			case s.Total == nil:
				return nil, errors.New("total_count is missing")
			case !countable(*s.Total), !countable(s.Browser), !countable(s.Server), !countable(s.Attributed):
				return nil, errors.New("a count is out of range")
			}
			c := byEvent[name]
			if c == nil {
				c = &message.Count{Event: name}
				byEvent[name] = c
			}
			c.Total += *s.Total
			c.Browser += s.Browser
			c.Server += s.Server
			c.Attributed += s.Attributed
		}
	}
	counts := make([]message.Count, 0, len(byEvent))
	for _, c := range byEvent {
		counts = append(counts, *c)
	}
	slices.SortFunc(counts, func(a, b message.Count) int {
		return cmp.Or(cmp.Compare(b.Total, a.Total), strings.Compare(a.Event, b.Event))
	})
	return counts[:min(len(counts), message.MaxEventTypes)], nil
}

// countable bounds a count far below the message's limit, because entries of one name are added up.
func countable(n int64) bool { return n >= 0 && n <= 1<<40 }

var usableAdvertiser = regexp.MustCompile(`^[0-9]{1,32}$`)

// CheckAdvertiser returns an error if id is no advertiser id.
func CheckAdvertiser(id string) error {
	if !usableAdvertiser.MatchString(id) {
		return errors.New("must be digits")
	}
	return nil
}
