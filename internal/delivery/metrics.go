package delivery

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"purchase-relay/internal/purchase"
)

type metrics struct {
	attempts   *prometheus.CounterVec
	duration   prometheus.Histogram
	acceptance prometheus.Histogram
	retries    *prometheus.CounterVec
	dead       *prometheus.CounterVec
	skipped    *prometheus.CounterVec
	size       prometheus.Histogram
	malformed  prometheus.Counter

	mu    sync.Mutex
	codes map[int]bool // with a label
}

// maxCodes bounds the values of the code label. Known codes include whole ranges (50000 to 53999) and every
// HTTP status: a broken gateway could make thousands.
const maxCodes = 64

func newMetrics(reg prometheus.Registerer, w *Worker) *metrics {
	m := &metrics{
		codes: map[int]bool{},
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_attempts_total", Help: "Requests to TikTok by the answer's class and code.",
		}, []string{"class", "code"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "purchase_relay_attempt_duration_seconds", Help: "Time of one request to TikTok.",
			Buckets: []float64{.025, .05, .1, .2, .4, .8, 1.6, 3.2, 6.4, 10, 30},
		}),
		acceptance: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "purchase_relay_acceptance_delay_seconds", Help: "From the payment to TikTok's acceptance.",
			Buckets: []float64{.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 48 * 3600},
		}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_retries_total", Help: "Purchases returned to the queue for a retry, by reason.",
		}, []string{"reason"}),
		dead: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_dead_letters_total", Help: "Purchases that ended dead, by reason.",
		}, []string{"reason"}),
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "purchase_relay_skipped_total", Help: "Skipped purchases, by reason.",
		}, []string{"reason"}),
		size: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "purchase_relay_batch_size", Help: "Events in one request to TikTok.",
			Buckets: []float64{1, 2, 5, 10, 25, 50, 100, 250, 500, 1000},
		}),
		malformed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "purchase_relay_junk_total", Help: "Malformed messages removed from the queue.",
		}),
	}
	for _, reason := range []purchase.Reason{
		purchase.ReasonRefused, purchase.ReasonExpired, purchase.ReasonCrash,
	} {
		m.dead.WithLabelValues(string(reason)) // increase() needs the series to start at 0
	}
	for _, reason := range []purchase.Reason{purchase.ReasonNotConfigured, purchase.ReasonTestPurchase} {
		m.skipped.WithLabelValues(string(reason))
	}
	for _, class := range []purchase.Class{
		purchase.ClassRetry, purchase.ClassRate, purchase.ClassAccess, purchase.ClassBlocked, purchase.ClassRefused,
	} {
		m.retries.WithLabelValues(string(class))
	}
	paused := func(reason string, stopped func() bool) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "purchase_relay_paused", Help: "1 while delivery is paused, by reason.",
			ConstLabels: prometheus.Labels{"reason": reason},
		}, func() float64 {
			if stopped() {
				return 1
			}
			return 0
		})
	}
	reg.MustRegister(
		m.attempts, m.duration, m.acceptance, m.retries, m.dead, m.skipped, m.size, m.malformed,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "purchase_relay_circuit_state",
			Help: "The circuit to TikTok, the worse of live and test: 0 closed, 1 half-open, 2 open.",
		}, func() float64 {
			now := w.config.Now()
			return max(w.live.circuit(now), w.test.circuit(now))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "purchase_relay_clock_offset_seconds",
			Help: "How far the NATS server's clock is ahead of this machine's.",
		}, func() float64 { return w.clockOffset().Seconds() }),
		paused("access", w.live.paused),
		paused("test_access", w.test.paused), // a label of its own: alerts on sales must not fire
		paused("rate", func() bool { return w.limiter.wait(w.config.Now()) > 0 }),
	)
	return m
}

// request counts a request with a number of events.
func (m *metrics) request(a *purchase.Attempt, known bool, events int) {
	m.size.Observe(float64(events))
	m.attempts.WithLabelValues(string(a.Class), m.code(a.Code, known)).Inc()
	m.duration.Observe(a.Took.Seconds())
}

// code returns a code's label, from a bounded set.
func (m *metrics) code(code *int, known bool) string {
	if code == nil {
		return "none"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !known || (!m.codes[*code] && len(m.codes) >= maxCodes) {
		return "other"
	}
	m.codes[*code] = true
	return strconv.Itoa(*code)
}
