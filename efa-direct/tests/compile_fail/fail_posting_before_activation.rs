use efa_direct::*;

fn main() -> Result<(), Error> {
    let device = Device::open("soft0")?;
    let pd = device.alloc_pd()?;
    let cq = device.create_cq(CqConfig::new(64))?;
    let qp = pd.create_qp(&cq, &cq, QpConfig::new(16, 16))?;
    let send = qp.send.into_cpu();
    drop(send);
    Ok(())
}
