// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"
)

// Endpoint answers GET / with our own bundle (SPIFFE Federation §5.2.1.3, §5.2.2.3). Whoever serves it
// chooses the profile by the certificate; clients are not authenticated.
type Endpoint struct {
	Own Own
	// RefreshHint is told to those who fetch; zero: defaultPoll.
	RefreshHint time.Duration
}

func (e Endpoint) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path != "/" {
		http.NotFound(w, req)
		return
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "the bundle is read with GET", http.StatusMethodNotAllowed)
		return
	}
	own, _ := e.Own()
	b := *own
	if b.RefreshHint = e.RefreshHint; b.RefreshHint == 0 {
		b.RefreshHint = defaultPoll
	}
	text, err := b.Document()
	if err != nil || b.empty() { // an empty one would tell them to trust nothing
		http.Error(w, "the bundle is not ready", http.StatusServiceUnavailable)
		return
	}
	sum := sha256.Sum256(text)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:])+`"`)
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(text))
}
