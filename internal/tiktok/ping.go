package tiktok

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// PingResult is the result of Ping.
type PingResult struct {
	Host       string
	ClockAhead time.Duration // of TikTok, compared with Config.Now, by the answer's Date: whole seconds
	ClockKnown bool          // the answer has a Date
}

// Ping requests TikTok's address without a token. Any answer is a success. The error omits the URL.
func Ping(ctx context.Context, c Config) (PingResult, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, http.NoBody)
	if err != nil {
		return PingResult{}, errors.New("invalid TIKTOK_API_URL")
	}
	resp, err := NewPixel(c, "", "", "").client.Do(req)
	if err != nil {
		return PingResult{}, errors.New(errorText(err))
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	_ = resp.Body.Close()
	r := PingResult{Host: req.URL.Host}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		r.ClockAhead, r.ClockKnown = date.Sub(c.Now()), true
	}
	return r, nil
}
