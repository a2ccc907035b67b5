//! Scans: one page, or page after page to the span's end.

use flotilla_proto::{Result, v1};

use super::api::Client;
use super::types::{ScanOptions, ScanPage};

impl Client {
    /// Reads one page. Records come from as many ranges as the page needs; each range's records are
    /// one point in time, the page is not. `next_token` leads to the next page, over splits and
    /// restarts of nodes.
    ///
    /// Errors: a scan may be repeated at will. *Retry*: [`Timeout`](flotilla_proto::Error::Timeout),
    /// after the client has repeated it until the time was over. *Fail*:
    /// [`InvalidArgument`](flotilla_proto::Error::InvalidArgument) (a bound, a token),
    /// [`Corruption`](flotilla_proto::Error::Corruption).
    pub async fn scan(&self, options: ScanOptions) -> Result<ScanPage> {
        let request = v1::ScanRequest {
            header: self.read_header(),
            start: options.start,
            end: options.end,
            reverse: options.reverse,
            limit: options.limit,
            limit_bytes: options.limit_bytes,
            keys_only: options.keys_only,
            count_only: options.count_only,
            token: options.token,
        };
        let answer = self.router().scan(request).await?;
        let records = answer.records.into_iter().map(Into::into).collect();
        Ok(ScanPage { records, count: answer.count, next_token: answer.next_token })
    }

    /// Reads page after page, to the span's end: `limit` is that of one page.
    ///
    /// ```no_run
    /// # async fn example(client: flotilla_router::Client) -> flotilla_proto::Result<()> {
    /// use flotilla_router::ScanOptions;
    ///
    /// let mut pages = client.scan_pages(ScanOptions::prefix("user/"));
    /// while let Some(page) = pages.next().await? {
    ///     for record in page.records {
    ///         println!("{:?} = {} bytes", record.key, record.value.len());
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn scan_pages(&self, options: ScanOptions) -> ScanPages {
        ScanPages { client: self.clone(), next: Some(options) }
    }
}

/// The pages of a scan; see [`Client::scan_pages`].
#[derive(Clone, Debug)]
pub struct ScanPages {
    client: Client,
    /// `None`: the span is done.
    next: Option<ScanOptions>,
}

impl ScanPages {
    /// The next page; `None` after the last. After an error the same page can be asked for again.
    pub async fn next(&mut self) -> Result<Option<ScanPage>> {
        let Some(options) = self.next.clone() else { return Ok(None) };
        let page = self.client.scan(options).await?;
        self.next = match self.next.take() {
            Some(options) if !page.next_token.is_empty() => {
                Some(ScanOptions { token: page.next_token.clone(), ..options })
            }
            _ => None,
        };
        Ok(Some(page))
    }
}
