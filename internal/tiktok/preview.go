package tiktok

import (
	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// Preview returns the request's body of a stored message as ingest knows it: of a delivered purchase the one
// that was sent, else, with sent nil, the one that will be. Settings that only the workers have are named in
// ‹…›.
func Preview(data []byte, sent *purchase.Sent) ([]byte, error) {
	envelope, err := message.DecodeEnvelope(data)
	if err != nil {
		return nil, err
	}
	pixel, testCode := "‹TIKTOK_PIXEL_ID›", ""
	if !envelope.Livemode {
		pixel = "‹TIKTOK_TEST_PIXEL_ID, else TIKTOK_PIXEL_ID›"
		testCode = "‹TIKTOK_TEST_EVENT_CODE, where it is set›"
	}
	page := "‹TIKTOK_PAGE_URL, where it is set›"
	if sent != nil {
		page, envelope.Keys, envelope.AmountMinor = sent.Page, envelope.Keys.Masked(sent.Keys), sent.Minor
	}
	c := Config{Payload: PayloadEvents, EventName: "CompletePayment", PageURL: page}
	return Body(c, pixel, testCode, []message.Envelope{envelope})
}
