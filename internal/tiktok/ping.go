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
	ClockAhead time.Duration // of TikTok, by the answer's Date (whole seconds) and Config.Now during the request
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
	client := NewPixel(c, "", "", "").client
	began := c.Now()
	resp, err := client.Do(req)
	ended := c.Now()
	if err != nil {
		return PingResult{}, errors.New(errorText(err))
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	_ = resp.Body.Close()
	r := PingResult{Host: req.URL.Host}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		r.ClockKnown = true
		switch {
		case date.Before(began):
			r.ClockAhead = date.Sub(began)
		case date.After(ended):
			r.ClockAhead = date.Sub(ended)
		}
	}
	return r, nil
}
