package stripegen

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"io"
	"iter"
	"net/http"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"golang.org/x/sync/errgroup"
)

// Sign returns the Stripe-Signature header of a body: scheme v1, HMAC-SHA256 of "<time>.<body>".
func Sign(body []byte, secret string, at time.Time) string {
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = fmt.Fprintf(mac, "%d.%s", at.Unix(), body)
	return fmt.Sprintf("t=%d,v1=%x", at.Unix(), mac.Sum(nil))
}

// Sender posts events to one endpoint.
type Sender struct {
	URL, Secret string
	Client      *http.Client // nil: one with a timeout of 30 s
}

// Answer is the endpoint's response.
type Answer struct {
	Status int
	Body   string
	Took   time.Duration
}

// Send posts a body once, signed now.
func (s *Sender) Send(ctx context.Context, body []byte) (Answer, error) {
	return s.Post(ctx, body, Sign(body, s.Secret, time.Now()))
}

// Post posts a body once with any signature header.
func (s *Sender) Post(ctx context.Context, body []byte, signature string) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.Header.Set("User-Agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
	req.Header.Set("Stripe-Signature", signature)
	began := time.Now()
	resp, err := cmp.Or(s.Client, &http.Client{Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return Answer{}, err
	}
	return Answer{Status: resp.StatusCode, Body: string(bytes.TrimSpace(text)), Took: time.Since(began)}, nil
}

// Deliver posts a body as Stripe does: repeatedly, each time signed anew, until the status is 2xx. The wait
// doubles up to 32 times the first one. After the last of attempts (at least 1), or at the end of ctx, it
// returns an error and the last answer, whose Status is 0 if there was none.
func (s *Sender) Deliver(
	ctx context.Context, body []byte, attempts uint64, wait time.Duration,
) (answer Answer, err error) {
	attempt := func() error {
		var err error
		answer, err = s.Send(ctx, body)
		if err == nil && answer.Status/100 != 2 {
			return fmt.Errorf("deliver event: %d %s", answer.Status, answer.Body)
		}
		return err
	}
	waits := backoff.NewExponentialBackOff(backoff.WithInitialInterval(wait), backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(0), backoff.WithMaxInterval(32*wait), backoff.WithMaxElapsedTime(0))
	retries := backoff.WithMaxRetries(waits, max(attempts, 1)-1)
	err = backoff.Retry(attempt, backoff.WithContext(retries, ctx))
	return answer, err
}

// Pace is how fast and how persistently Play sends.
type Pace struct {
	Concurrency int           // events in flight, including those between two attempts; 0: 1
	Attempts    uint64        // per event; 0: 1
	Wait        time.Duration // before the second attempt, see Deliver
}

// Play delivers each arrival when it is due, counted from now, or as soon after that as the pace allows. The
// arrivals are in order of time. answered gets the last answer to each, one call at a time. Play ends with an
// error when the last attempt of an event gets no answer, or at the end of ctx.
func (s *Sender) Play(
	ctx context.Context, arrivals iter.Seq[Arrival], pace Pace, answered func(Arrival, Answer),
) error {
	var mu sync.Mutex
	began := time.Now()
	group, playing := errgroup.WithContext(ctx)
	group.SetLimit(max(pace.Concurrency, 1))
	for arrival := range arrivals {
		select {
		case <-playing.Done():
		case <-time.After(time.Until(began.Add(arrival.After))):
		}
		if playing.Err() != nil {
			break
		}
		group.Go(func() error {
			answer, err := s.Deliver(playing, arrival.Body, pace.Attempts, pace.Wait)
			if answer.Status == 0 {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			answered(arrival, answer)
			return nil
		})
	}
	return cmp.Or(group.Wait(), ctx.Err())
}
