//! What the others misuse, used rightly: so that they fail for their own reason and no other.

use efa_direct::*;

fn main() -> Result<(), Error> {
    let device = Device::open("soft0")?;
    let pd = device.alloc_pd()?;
    let cq = device.create_cq(CqConfig::new(64))?;
    let qp = pd.create_qp(&cq, &cq, QpConfig::new(16, 16))?.activate(1)?;
    let peer = pd.peer(&qp.endpoint)?;
    let region = pd.allocate(64, Access::ALL)?;
    let mut send = qp.send.into_cpu();
    send.post(&peer, Send::new(&[region.slice(..)?]), 1)?;
    let mut recv = qp.recv.into_cpu();
    recv.post(&[region.slice(..)?], 2)?;
    let mut cq = cq.into_cpu();
    let _ = cq.poll_one();
    Ok(())
}
