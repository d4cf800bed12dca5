package tiktok

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// Reached is what an answer of TikTok's address shows, whatever it says.
type Reached struct {
	Host       string
	ClockAhead time.Duration // TikTok's clock before Config.Now, by the answer's Date: whole seconds
	ClockKnown bool          // false: the answer has no Date
}

// Reach requests TikTok's address without a token. Any answer is good. The error has no URL.
func Reach(ctx context.Context, c Config) (Reached, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, http.NoBody)
	if err != nil {
		return Reached{}, errors.New("TIKTOK_API_URL cannot be used")
	}
	resp, err := NewPixel(c, "", "", "").client.Do(req)
	if err != nil {
		return Reached{}, errors.New(reason(err))
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // what it says does not matter
	_ = resp.Body.Close()
	r := Reached{Host: req.URL.Host}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		r.ClockAhead, r.ClockKnown = date.Sub(c.Now()), true
	}
	return r, nil
}
