// Command riverpeer is the product's job as a Go engineer would write it with River: one binary, Postgres
// alone. The webhook's transaction writes the rows that ingest writes and inserts a job; workers send one
// event each to TikTok and record the answer. It is a baseline of the benchmark. Its module is separate, so
// that the product depends on nothing of it.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/webhook"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		slog.Error("exit", "error", err)
		os.Exit(1)
	}
}

// run serves webhooks and delivers with WORKERS workers until ctx ends; 0: webhooks alone.
func run(ctx context.Context) error {
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL")+"&pool_max_conns=32") // the URL has a query
	if err != nil {
		return err
	}
	defer pool.Close()
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, nil)
	if err != nil {
		return err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	workers, err := strconv.Atoi(os.Getenv("WORKERS"))
	if err != nil {
		return err
	}
	registry := river.NewWorkers()
	river.AddWorker(registry, &deliverer{
		pool: pool, url: os.Getenv("TIKTOK_API_URL"), token: os.Getenv("TIKTOK_ACCESS_TOKEN"),
		pixel: os.Getenv("TIKTOK_PIXEL_ID"),
		client: &http.Client{
			Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: workers + 1},
		},
	})
	riverConfig := &river.Config{Workers: registry, Logger: slog.New(slog.DiscardHandler)}
	if workers > 0 {
		riverConfig.FetchCooldown = river.FetchCooldownMin
		riverConfig.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}}
	}
	jobs, err := river.NewClient(driver, riverConfig)
	if err != nil {
		return err
	}
	if workers > 0 {
		if err := jobs.Start(ctx); err != nil {
			return err
		}
		defer func() { _ = jobs.Stop(context.WithoutCancel(ctx)) }()
	}
	mux := http.NewServeMux()
	mux.Handle("POST /webhooks/stripe", &handler{
		pool: pool, jobs: jobs, secret: os.Getenv("STRIPE_WEBHOOK_SECRET"),
	})
	server := &http.Server{Addr: os.Getenv("ADDR"), Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Shutdown(context.WithoutCancel(ctx)) })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// purchase is a job's arguments: TikTok's event.
type purchase struct {
	Event      string `json:"event"`
	EventTime  int64  `json:"event_time"`
	EventID    string `json:"event_id"`
	User       user   `json:"user"`
	Properties struct {
		Value    float64 `json:"value"`
		Currency string  `json:"currency"`
	} `json:"properties"`
	Page struct {
		URL      string `json:"url,omitempty"`
		Referrer string `json:"referrer,omitempty"`
	} `json:"page"`
}

type user struct {
	Email      string `json:"email,omitempty"`
	Phone      string `json:"phone,omitempty"`
	ExternalID string `json:"external_id,omitempty"`
	TTCLID     string `json:"ttclid,omitempty"`
	TTP        string `json:"ttp,omitempty"`
	IP         string `json:"ip,omitempty"`
	UserAgent  string `json:"user_agent,omitempty"`
}

// Kind implements river.JobArgs.
func (purchase) Kind() string { return "purchase" }

func hash(s string) string {
	sum := sha256.Sum256([]byte(strings.ToLower(strings.TrimSpace(s))))
	return hex.EncodeToString(sum[:])
}

type handler struct {
	pool   *pgxpool.Pool
	jobs   *river.Client[pgx.Tx]
	secret string
}

// ServeHTTP verifies and records a webhook.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		http.Error(w, `{"error":"unreadable"}`, http.StatusBadRequest)
		return
	}
	event, err := webhook.ConstructEventWithOptions(body, r.Header.Get("Stripe-Signature"), h.secret,
		webhook.ConstructEventOptions{IgnoreAPIVersionMismatch: true})
	if err != nil {
		slog.Warn("Invalid signature", "error", err)
		http.Error(w, `{"error":"invalid signature"}`, http.StatusBadRequest)
		return
	}
	status := "ignored"
	if event.Type == stripe.EventTypeCheckoutSessionCompleted {
		if status, err = h.record(r.Context(), &event); err != nil {
			slog.Error("Record failed", "event", event.ID, "error", err)
			http.Error(w, `{"error":"unavailable"}`, http.StatusServiceUnavailable)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"status":%q}`, status)
}

const sqlInsertEvent = `
INSERT INTO public.stripe_events
    (event_id, type, checkout_session_id, livemode, created_at, received_at, disposition)
VALUES ($1, $2, $3, $4, $5, now(), 'processed') ON CONFLICT DO NOTHING`

const sqlUpsertProfile = `
INSERT INTO public.profiles (livemode, email, stripe_customer_id, stripe_subscription_id, last_purchase_at)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (livemode, email) DO UPDATE SET stripe_customer_id = excluded.stripe_customer_id,
    stripe_subscription_id = excluded.stripe_subscription_id, last_purchase_at = excluded.last_purchase_at,
    updated_at = now()
RETURNING id::text`

const sqlInsertPurchase = `
INSERT INTO public.purchases (checkout_session_id, status, profile_id, mode, livemode, amount_minor, currency,
    purchased_at, stripe_customer_id, stripe_subscription_id)
VALUES ($1, 'pending', $2::uuid, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING`

// record writes event, profile, purchase and job in one transaction.
func (h *handler) record(ctx context.Context, event *stripe.Event) (status string, err error) {
	var s stripe.CheckoutSession
	if err := json.Unmarshal(event.Data.Raw, &s); err != nil {
		return "", err
	}
	if s.PaymentStatus != stripe.CheckoutSessionPaymentStatusPaid || s.CustomerDetails == nil {
		return "ignored", nil
	}
	slog.Info("Processing checkout.session.completed", "session", s.ID)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	at := time.Unix(event.Created, 0)
	status = "duplicate"
	return status, pgx.BeginFunc(ctx, h.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, sqlInsertEvent, event.ID, event.Type, s.ID, s.Livemode, at)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		email := strings.ToLower(s.CustomerDetails.Email)
		profile := ""
		row := tx.QueryRow(ctx, sqlUpsertProfile, s.Livemode, email, s.Customer.ID, s.Subscription.ID, at)
		if err := row.Scan(&profile); err != nil {
			return err
		}
		tag, err = tx.Exec(ctx, sqlInsertPurchase, s.ID, profile, s.Mode, s.Livemode, s.AmountTotal,
			s.Currency, at, s.Customer.ID, s.Subscription.ID)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		job := purchase{Event: "CompletePayment", EventTime: event.Created, EventID: s.ID}
		job.User = user{
			Email: hash(email), Phone: hash(s.CustomerDetails.Phone), ExternalID: hash(profile),
			TTCLID: s.Metadata["ttclid"], TTP: s.Metadata["ttp"], IP: s.Metadata["client_ip"],
			UserAgent: s.Metadata["user_agent"],
		}
		job.Properties.Value = float64(s.AmountTotal) / 100
		job.Properties.Currency = strings.ToUpper(string(s.Currency))
		job.Page.URL, job.Page.Referrer = s.Metadata["page_url"], s.Metadata["referrer"]
		status = "processed"
		_, err = h.jobs.InsertTx(ctx, tx, job, nil)
		return err
	})
}

type deliverer struct {
	river.WorkerDefaults[purchase]

	pool              *pgxpool.Pool
	client            *http.Client
	url, token, pixel string
}

const sqlDelivered = `
UPDATE public.purchases SET status = 'delivered', attempts = $2, tiktok_request_id = $3, finished_at = now(),
    updated_at = now() WHERE checkout_session_id = $1`

// Work sends one event. River repeats it with exponential backoff after an error, and records the completion
// of many jobs together.
func (d *deliverer) Work(ctx context.Context, job *river.Job[purchase]) error {
	body, err := json.Marshal(map[string]any{
		"event_source": "web", "event_source_id": d.pixel, "data": []purchase{job.Args},
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Access-Token", d.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Code      *int   `json:"code"`
		Message   string `json:"message"`
		RequestID string `json:"request_id"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Code == nil || *answer.Code != 0 {
		return fmt.Errorf("TikTok: HTTP %d: %s", resp.StatusCode, answer.Message)
	}
	slog.Info("Purchase event sent successfully", "session", job.Args.EventID)
	_, err = d.pool.Exec(ctx, sqlDelivered, job.Args.EventID, job.Attempt, answer.RequestID)
	return err
}
