package queue

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// scrapeTimeout bounds the request at each scrape.
const scrapeTimeout = 2 * time.Second

// backlog requests the consumer's figures from the server at each scrape: they cover all workers.
type backlog struct {
	consumer                *Consumer
	waiting, unacknowledged *prometheus.Desc
}

// NewBacklogMetrics returns the collector of a consumer's backlog. While NATS or the consumer is missing, so
// are its two gauges: an old figure would look like a constant backlog.
func NewBacklogMetrics(c *Consumer) prometheus.Collector {
	return &backlog{
		consumer: c,
		waiting: prometheus.NewDesc("purchase_relay_consumer_pending",
			"Purchases in the queue that no worker has fetched yet.", nil, nil),
		unacknowledged: prometheus.NewDesc("purchase_relay_consumer_ack_pending",
			"Purchases that a worker has fetched and not settled, or that wait for their retry.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (b *backlog) Describe(ch chan<- *prometheus.Desc) {
	ch <- b.waiting
	ch <- b.unacknowledged
}

// Collect implements prometheus.Collector.
func (b *backlog) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	waiting, unacknowledged, err := b.consumer.Pending(ctx)
	if err != nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(b.waiting, prometheus.GaugeValue, float64(waiting))
	ch <- prometheus.MustNewConstMetric(b.unacknowledged, prometheus.GaugeValue, float64(unacknowledged))
}
